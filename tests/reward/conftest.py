"""Loads a shipped reward the way a reader would try it: straight from its file."""

import importlib.util

import pytest

from posttrain import content


@pytest.fixture
def reward(request):
    """The reward function that the test file is named after: tests/reward/test_accuracy.py gets accuracy.

    A test file about a part of a reward names that: REWARD = "code".
    """
    name = getattr(request.module, "REWARD", request.path.stem.removeprefix("test_"))
    path = content.find("reward", name)
    assert path is not None
    spec = importlib.util.spec_from_file_location(f"reward_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
