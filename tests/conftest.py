"""Small models that say something, and a cache of their own for the tests that build one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 97
END = 1

Build = Callable[..., PreTrainedModel]


def _small(family: str) -> PreTrainedModel:
    ends = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": END}
    if family == "gpt2":
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **quiet, **ends))
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape, **ends, tie_word_embeddings=False))
        with torch.no_grad():  # its biases are made as zeros
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.5)
        return model
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape, **ends, head_dim=16, tie_word_embeddings=False))
    return LlamaForCausalLM(LlamaConfig(**shape, **ends, tie_word_embeddings=True))


@pytest.fixture
def build() -> Build:
    """build("llama" | "qwen2" | "qwen3" | "gpt2", seed=0): two layers, ids 0 to 96, 1 ends."""

    def make(family: str = "llama", seed: int = 0) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _small(family).eval()
        with torch.no_grad():  # freshly made weights give near-uniform outputs: make them say something
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)
        return model

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: "<0>", "<end>", "<2>" … "<96>"."""
    words = {("<end>" if i == END else f"<{i}>"): i for i in range(VOCAB)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="session")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that lasts for the session: `tiny` is made there once."""
    monkeypatch.setenv("POSTTRAIN_HOME", str(_home))
    return _home


@pytest.fixture
def one_process() -> Iterator[None]:
    """accelerate keeps one state a process, precision included; forget it before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
