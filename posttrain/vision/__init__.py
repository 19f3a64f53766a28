"""Pictures in front of a language model. Importing it teaches transformers' Auto classes our model types."""

from posttrain.vision import model as _model  # noqa: F401  registers the model, and with it its tower
