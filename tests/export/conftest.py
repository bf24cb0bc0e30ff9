"""What every test of exported files gets."""

from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch):
    """MobileNets have two blocks a stage at most: torch traces each for a third of a second.

    The second block of a stage is the one with a residual; where the stage is dilated, it is the
    one with the full dilation, too. Further blocks are as the second.
    """
    # As an attribute of the package the name is a function's.
    mobilenet_v2 = import_module("fastseg.models.backbones.mobilenet_v2")
    stages = tuple((t, c, min(blocks, 2), s) for t, c, blocks, s in mobilenet_v2.STAGES)
    monkeypatch.setattr(mobilenet_v2, "STAGES", stages)
