"""Models of the Hub's families that see, from small configs: log-probabilities, gradients and completions."""

from __future__ import annotations
