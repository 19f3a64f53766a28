"""posttrain: teach a language model to reason."""

__version__ = "0.1.0"
