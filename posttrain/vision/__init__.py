"""Pictures in front of a language model. Importing it teaches transformers' Auto classes our model types."""

from posttrain.vision.towers import model as _tower_model  # noqa: F401  registers TowerModel
