"""A small network and a folder of pictures that it segments."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fastseg.models import build_model
from fastseg.zoo.checkpoint import save_model

CLASSES = ["sky", "road", "tree"]
PALETTE = [[0, 0, 255], [128, 64, 128], [0, 128, 0]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model with weights that nobody trained."""
    torch.manual_seed(0)
    options = {"width": 4, "kernel_size": 3}
    metadata = {"model": "segnet_basic", "options": options, "classes": CLASSES}
    metadata |= {"palette": PALETTE, "short_side": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save_model(path, build_model("segnet_basic", 3, **options), metadata)
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures of some sizes, also in a folder in the folder; the working folder is above it."""
    (tmp_path / "img/sub").mkdir(parents=True)
    for name, size in {"a.png": (41, 30), "b.jpg": (30, 41), "sub/c.png": (41, 30)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "img" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
