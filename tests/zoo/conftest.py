"""What several tests of checkpoints load."""

from __future__ import annotations

import pytest
import torch

from fastseg.models import build_model
from tests.zoo import zoo_definitions as definitions


@pytest.fixture
def original():
    """milesial's U-Net, and a model that its state_dict fits."""
    torch.manual_seed(0)
    theirs = definitions.settled(definitions.Milesial(3, 5, 4, False), 3, 32, 32)
    return theirs, build_model("unet", 5, width=4)
