"""Models of the Hub's families that see, from small configs: log-probabilities, gradients and completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest_families import AXES, FAMILIES, Family
from PIL import Image

from posttrain.multimodal import banned, body, example, features, image_token, parts, sees
