"""The weights that come with the package reach the figures of their model card."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

import fastseg
from fastseg.checkpoint import load_model
from fastseg.data import CAMVID_CLASSES, CAMVID_PALETTE, CamVid, EvalTransform
from fastseg.evaluate import evaluate, scores

WEIGHTS = Path(fastseg.__file__).parent / "weights" / "segnet_basic_camvid.pt"

# Every tenth validation image.
SUBSET = range(0, 101, 10)
SUBSET_SCORES = {"miou": 0.5737, "pixel_accuracy": 0.8826, "class_accuracy": 0.7309}


def test_the_file_is_small_and_says_how_to_use_it():
    assert WEIGHTS.stat().st_size < 4_000_000
    model, metadata = load_model(WEIGHTS)
    assert metadata["classes"] == list(CAMVID_CLASSES)
    assert metadata["palette"] == [list(colour) for colour in CAMVID_PALETTE]
    assert {"mean", "std", "short_side"} <= metadata.keys()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 61, 47)).shape == (1, 11, 61, 47)


@pytest.mark.parametrize("backend", ["torch", "fastseg"])
def test_the_weights_reach_their_figures(backend, shared_data):
    model, metadata = load_model(WEIGHTS, backend=backend)
    dataset = CamVid(shared_data("data", "camvid"), "val", EvalTransform(metadata["short_side"]))
    matrix = evaluate(model, Subset(dataset, SUBSET))
    assert scores(matrix) == pytest.approx(SUBSET_SCORES, abs=0.005)
