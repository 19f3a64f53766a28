"""Policies that are changed as they are loaded: tokens added, layers dropped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, normalizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from posttrain import decoder, models
from posttrain.rollout.native import NativeEngine
from posttrain.types import PosttrainError, Sampling

TAGS = ("<think>", "</think>")
SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


@pytest.fixture
def characters(home: Path) -> PreTrainedTokenizerFast:
    """tiny's tokenizer: a token a character."""
    return models.load("tiny")[1]


def build(family: str = "llama", **shape: Any) -> PreTrainedModel:
    """A model of six layers that says something."""
    kinds: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "tie_word_embeddings": True, **shape})),
        "qwen3": lambda: Qwen3ForCausalLM(
            Qwen3Config(**{**SHAPE, "head_dim": 16, "tie_word_embeddings": False, **shape})
        ),
        "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**{**SHAPE, **shape})),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kinds[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def stored(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    models.save(model, tokenizer, folder)
    return str(folder)


def tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """The embeddings and the head's weight, [V, H] each."""
    both: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [table.weight.detach() for table in both]


def logits(model: PreTrainedModel, *ids: int) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


# -- tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"], ids=["tied", "untied", "gpt2"])
def test_new_tokens_are_one_id_and_start_as_the_mean_of_their_pieces(
    family: str, characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    before = build(family)
    folder = stored(before, characters, tmp_path / "model")
    model, tokenizer = models.load(folder, tokens=TAGS)
    new = [tokenizer.encode(tag, add_special_tokens=False) for tag in TAGS]
    assert new == [[100], [101]]
    text = "a<think>\nb </think>c<think"
    ids = tokenizer.encode(text)
    assert ids.count(100) == ids.count(101) == 1 and len(ids) == len(text) - len("".join(TAGS)) + 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert not set(TAGS) & set(tokenizer.all_special_tokens)
    for old, now in zip(tables(before), tables(model), strict=True):
        assert now.shape == (102, 32)
        assert torch.equal(now[:100], old)
        for tag, (place,) in zip(TAGS, new, strict=True):
            pieces = [characters.convert_tokens_to_ids(char) for char in tag]
            mean = torch.stack([old[piece] for piece in pieces]).mean(0)
            torch.testing.assert_close(now[place], mean)
    tied = tables(model)[0].data_ptr() == tables(model)[1].data_ptr()
    assert tied == (family != "qwen3") and model.config.get_text_config().vocab_size == 102
    torch.testing.assert_close(logits(model, 5, 6, 7)[:, :100], logits(before, 5, 6, 7))


@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["tied", "untied"])
def test_new_tokens_are_saved_and_not_added_again(
    family: str, characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, tokenizer = models.load(stored(build(family), characters, tmp_path / "one"), tokens=TAGS)
    with torch.no_grad():
        tables(model)[0][100] += 1  # as training would
    folder = stored(model, tokenizer, tmp_path / "two")
    for again, reader in (
        models.load(folder),
        models.load(folder, tokens=TAGS),
        (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)),
    ):
        assert reader.encode("x<think>") == tokenizer.encode("x<think>")
        assert reader.decode([100, 101], skip_special_tokens=True) == "<think></think>"
        assert torch.equal(logits(again, 5, 100, 101), logits(model, 5, 100, 101))
    one_more, reader = models.load(folder, tokens=(*TAGS, "<answer>"))
    assert reader.encode("</think><answer>") == [101, 102]
    assert torch.equal(tables(one_more)[0][:102], tables(model)[0])


def test_tokens_that_are_there_already_change_nothing(
    characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = stored(build(), characters, tmp_path / "model")
    plain, _ = models.load(folder)
    model, tokenizer = models.load(folder, tokens=("a", "<|end|>", "\n"))
    assert len(tokenizer) == 100 and torch.equal(tables(model)[0], tables(plain)[0])
    assert tokenizer.eos_token_id == 1 and tokenizer.decode([1], skip_special_tokens=True) == ""
    model, tokenizer = models.load(folder, tokens=("<think>", "<think>"))
    assert len(tokenizer) == 101


def test_room_that_the_model_has_to_spare_is_used(
    characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Some checkpoints have more embeddings than their tokenizer has tokens."""
    folder = stored(build(vocab_size=128), characters, tmp_path / "model")
    model, _ = models.load(folder, tokens=TAGS)
    weight = tables(model)[0]
    assert weight.shape == (128, 32)
    torch.testing.assert_close(weight[100], weight[characters.encode("<think>")].mean(0))


def test_a_mark_before_every_text_does_not_hide_a_token(
    characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As in Llama 2's tokenizer, which reads "a" as "▁a"."""
    raw = Tokenizer.from_str(characters.backend_tokenizer.to_str())
    raw.normalizer = normalizers.Prepend("_")  # pyright: ignore[reportAttributeAccessIssue]
    marked = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    _, tokenizer = models.load(stored(build(), marked, tmp_path / "model"), tokens=TAGS)
    assert tokenizer.encode("a<think>").count(100) == 1 and tokenizer.encode("<think>") == [100]


def test_a_token_of_nothing_is_refused(characters: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    raw = Tokenizer.from_str(characters.backend_tokenizer.to_str())
    raw.normalizer = normalizers.Strip()  # pyright: ignore[reportAttributeAccessIssue]
    strip = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>")
    folder = stored(build(), strip, tmp_path / "model")
    with pytest.raises(PosttrainError, match=r"model\.tokens: .* makes nothing of '  '"):
        models.load(folder, tokens=("<think>", "  "))


def test_completions_show_new_tokens(characters: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Rewards read the engine's text, which leaves out special tokens."""
    model, tokenizer = models.load(stored(build("qwen3"), characters, tmp_path / "model"), tokens=TAGS)
    head: Any = model.get_output_embeddings()
    hidden: list[torch.Tensor] = []
    body: Any = model.base_model
    hook = body.norm.register_forward_hook(lambda _module, _inputs, out: hidden.append(out[0, -1]))
    logits(model, 5, 6, 7)
    hook.remove()
    with torch.no_grad():
        head.weight[100] = 100 * hidden[0]  # so that the first token is <think>
    engine = NativeEngine(model, tokenizer, torch.float32)
    ((said,),) = engine.generate([[5, 6, 7]], 1, Sampling(1, 0.0), [0])
    assert said.tokens == [100] and said.text == "<think>"


# -- layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "kept"),
    [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (4, [0, 2, 3, 5]), (5, [0, 1, 2, 4, 5]), (6, [0, 1, 2, 3, 4, 5])],
)
def test_kept_layers_are_spread_evenly(
    count: int, kept: list[int], characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = build()
    model, _ = models.load(stored(whole, characters, tmp_path / "model"), layers=count)
    body: Any = model.base_model
    full: Any = whole.base_model
    assert [layer.self_attn.layer_idx for layer in body.layers] == list(range(count))
    assert model.config.get_text_config().num_hidden_layers == count
    for layer, place in zip(body.layers, kept, strict=True):
        for name, weight in layer.state_dict().items():
            assert torch.equal(weight, full.layers[place].state_dict()[name]), (place, name)
    # A model that was made with so many layers computes the same from the same weights.
    twin: Any = build(num_hidden_layers=count)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits(model, 5, 6, 7, 8), logits(twin, 5, 6, 7, 8))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["modules", "layers"])
def test_a_shortened_model_generates(
    family: str, by_hand: bool, characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Each layer has its own place in the cache: the engine, transformers' generate and no cache agree."""
    model: Any
    model, tokenizer = models.load(stored(build(family), characters, tmp_path / "model"), layers=3)
    ours = copy.deepcopy(model)  # the engine puts its attention on it
    layers = decoder.layers_of(ours) if by_hand else None
    assert (layers is not None) == by_hand
    engine = NativeEngine(ours, tokenizer, torch.float32, layers=layers)
    assert engine.depth == 3
    prompts = [[5, 6, 7, 8, 9], [20, 21], [90, 31, 62, 13, 44, 75, 26]]
    words = set()
    for ids, (said,) in zip(prompts, engine.generate(prompts, 1, Sampling(12, 0.0), [0, 1, 2]), strict=True):
        asked = torch.tensor([ids])
        cached = model.generate(asked, max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
        so_far = list(ids)
        for _ in said.tokens:
            so_far.append(int(logits(model, *so_far)[-1].argmax()))
        assert said.tokens == cached == so_far[len(ids) :]
        words |= set(cached)
    assert len(words) > 2, "it says something"


@pytest.mark.parametrize("family", ["llama", "qwen3", "smollm3"])
def test_a_shortened_model_is_saved_as_it_is(
    family: str, characters: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """In 8 layers SmolLM3's 4th and 8th have no positions: of three that are left, the last."""
    whole = build(family, num_hidden_layers=8)
    model, tokenizer = models.load(stored(whole, characters, tmp_path / "one"), layers=3, tokens=TAGS)
    folder = stored(model, tokenizer, tmp_path / "two")
    for again in (models.load(folder)[0], AutoModelForCausalLM.from_pretrained(folder)):
        assert again.config.num_hidden_layers == 3
        assert torch.equal(logits(again, 5, 100, 7), logits(model, 5, 100, 7))
    kinds = getattr(model.config, "layer_types", None)
    assert kinds is None or len(kinds) == 3
    fewer, _ = models.load(folder, layers=2)
    assert fewer.config.num_hidden_layers == 2


def test_sliding_layers_stay_sliding(characters: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    kinds = ["full_attention"] * 5 + ["sliding_attention"]
    sliding = {"use_sliding_window": True, "sliding_window": 2, "layer_types": kinds}
    model, tokenizer = models.load(stored(build("qwen3", **sliding), characters, tmp_path / "one"), layers=2)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    again, _ = models.load(stored(model, tokenizer, tmp_path / "two"))
    assert torch.equal(logits(again, 5, 6, 7, 8, 9), logits(model, 5, 6, 7, 8, 9))
    model.config.layer_types = ["full_attention"] * 2
    assert not torch.allclose(logits(again, 5, 6, 7, 8, 9), logits(model, 5, 6, 7, 8, 9)), "a window counts"


@pytest.mark.parametrize("count", [7, 100, 0])
def test_more_layers_than_there_are(count: int, characters: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = stored(build(), characters, tmp_path / "model")
    with pytest.raises(PosttrainError, match=rf"model\.layers is {count}; the model has 6"):
        models.load(folder, layers=count)


def test_layers_that_are_not_found(characters: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = stored(build("gpt2"), characters, tmp_path / "model")
    with pytest.raises(PosttrainError, match=r"model\.layers: GPT2LMHeadModel has no list of layers"):
        models.load(folder, layers=1)
