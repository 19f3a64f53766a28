"""What tests against TRL's trainer begin with."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig


@pytest.fixture(scope="module")
def little_llama() -> LlamaConfig:
    """Of 31 tokens, of which 0 fills up and 1 ends; large weights."""
    return LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,  # far from uniform, so that log-probabilities differ between tokens
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
