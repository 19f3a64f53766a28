"""What this machine has, for `posttrain doctor`. Loads libraries one by one, and none at import."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
from importlib import metadata
from pathlib import Path

from posttrain import __version__, places
from posttrain.types import PosttrainError

Check = tuple[str, str, bool]  # name, what was found, whether posttrain can work with it

EXTRAS = {
    "vllm": ["vllm"],
    "deepspeed": ["deepspeed"],
    "lora": ["peft"],
    "openai": ["openai"],
    "vision": ["PIL", "sklearn"],
    "dev": ["pytest"],
}


def checks() -> list[Check]:
    """Everything looked at, in the order to show it."""
    return [
        ("posttrain", f"{__version__}, Python {platform.python_version()}, {platform.platform()}", True),
        ("cores", f"{len(os.sched_getaffinity(0))} to use, {os.cpu_count()} in the machine", True),
        ("memory", _memory(), True),
        ("bfloat16", bfloat16(Path("/proc/cpuinfo")), True),
        *_packages(),
        _imports("torch"),
        _imports("transformers"),
        _torchvision(),
        ("gpu", _gpu(), True),
        (
            "extras",
            ", ".join(f"{e}: {'yes' if all(map(_there, m)) else 'no'}" for e, m in EXTRAS.items()),
            True,
        ),
        _demo_model(),
    ]


def bfloat16(cpuinfo: Path) -> str:
    """Whether the processor multiplies bfloat16 natively, from the flags that Linux lists."""
    try:
        flags = set(cpuinfo.read_text(encoding="utf-8").split())
    except OSError:
        return "not known: this system lists no processor flags"
    found = sorted(flags & {"amx_bf16", "avx512_bf16", "bf16"})
    return f"fast on this processor ({', '.join(found)})" if found else "slow on this processor"


def _memory() -> str:
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return "not known"
    kib = {name: int(n) for name, n in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB free"


def _packages() -> list[Check]:
    """Each requirement beside what is installed."""
    try:
        from packaging.requirements import Requirement

        wanted = [Requirement(text) for text in metadata.requires("posttrain") or []]
    except ImportError as error:  # packaging, or posttrain itself (PackageNotFoundError)
        return [
            ("packages", f"{error}; install posttrain with its requirements: pip install posttrain", False)
        ]
    found: list[Check] = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append((requirement.name, f"missing; run: pip install '{requirement}'", False))
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        found.append(
            (requirement.name, version if fits else f"{version}; {requirement.specifier} is needed", fits)
        )
    return found


def _imports(name: str) -> Check:
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken install can raise anything
        return f"import {name}", f"fails: {type(error).__name__}: {error}", False
    return f"import {name}", "works", True


def _torchvision() -> Check:
    if not _there("torchvision"):
        return "torchvision", "not installed, and not needed", True
    name, text, fine = _imports("torchvision")
    hint = "" if fine else "; it takes transformers down with it, run: pip uninstall torchvision"
    return name, text + hint, fine


def _gpu() -> str:
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception as error:
        return f"not known: {type(error).__name__}: {error}"
    return ", ".join(names) or "none; the processor is used"


def _demo_model() -> Check:
    """Whether `smollm2-135m` can be had: converted already, from the installed package, or from the Hub."""
    try:
        pass
    except Exception as error:  # torch or transformers, already told of
        return "demo model", f"not known: {type(error).__name__}: {error}", False
    alias = "smollm2-135m"
    hub_id, package, _ = places.ALIASES[alias]
    if (places.cache_folder() / alias / "config.json").is_file():
        return "demo model", f"{alias} lies in {places.cache_folder() / alias}", True
    if _there(package):
        return "demo model", f"{alias} will be converted from the package {package.replace('_', '-')}", True
    try:
        places.resolve(alias)
    except PosttrainError as error:
        return "demo model", str(error), False
    return "demo model", f"{alias} comes from the Hub ({hub_id})", True


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
