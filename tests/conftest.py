"""Small models that say something, a cache for the tests that build one, a look for processes left behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
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


@pytest.fixture(scope="session")
def bubblewrap() -> None:
    """Skips where bubblewrap is missing, or cannot make even the plainest sandbox."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (apt install bubblewrap)")
    plain = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"]
    done = subprocess.run(plain, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"bubblewrap cannot make namespaces here: {done.stderr.strip()}")


def _alive() -> dict[int, str]:
    """Every living process below this one: its id and how it was called."""
    parents: dict[int, int] = {}
    calls: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            call = stat.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if state not in "ZX":
            parents[int(stat.parent.name)], calls[int(stat.parent.name)] = int(parent), call

    def is_ours(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return {pid: call for pid, call in calls.items() if is_ours(pid)}


@pytest.fixture
def alive() -> Iterator[Callable[[], dict[int, str]]]:
    """alive() lists the processes that the test has begun and that live, orphans too; none may be left."""
    adopt = ctypes.CDLL(None).prctl
    adopt(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    before = _alive()

    def since() -> dict[int, str]:
        return {pid: call for pid, call in _alive().items() if pid not in before}

    yield since
    patience = time.monotonic() + 20
    while (left := since()) and time.monotonic() < patience:
        time.sleep(0.05)
    adopt(36, 0, 0, 0, 0)
    assert not left
