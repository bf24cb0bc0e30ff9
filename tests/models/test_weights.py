"""The weights that come with the package reach the figures of their model card."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

import fastseg
from fastseg.data import CAMVID_CLASSES, CAMVID_PALETTE, CamVid, EvalTransform
from fastseg.segment.segmenter import shipped_weights
from fastseg.train.evaluate import evaluate, scores
from fastseg.zoo.checkpoint import load_model

WEIGHTS = Path(fastseg.__file__).parent / "weights"

# Every tenth validation image.
SUBSET = range(0, 101, 10)
SUBSET_SCORES = {
    "segnet_basic_camvid": {"miou": 0.5737, "pixel_accuracy": 0.8826, "class_accuracy": 0.7309},
    "deeplabv3plus_mobilenet_v2_camvid": {
        "miou": 0.6907,
        "pixel_accuracy": 0.9269,
        "class_accuracy": 0.8308,
    },
}
each_file = pytest.mark.parametrize("name", SUBSET_SCORES)


def test_all_weights_are_tested():
    assert sorted(SUBSET_SCORES) == shipped_weights()


@each_file
def test_the_file_is_small_and_says_how_to_use_it(name):
    path = WEIGHTS / f"{name}.pt"
    assert path.stat().st_size < 6_000_000
    model, metadata = load_model(path)
    assert metadata["classes"] == list(CAMVID_CLASSES)
    assert metadata["palette"] == [list(colour) for colour in CAMVID_PALETTE]
    assert {"mean", "std", "short_side"} <= metadata.keys()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 61, 47)).shape == (1, 11, 61, 47)


@each_file
@pytest.mark.parametrize("backend", ["torch", "fastseg"])
def test_the_weights_reach_their_figures(backend, name, shared_data):
    model, metadata = load_model(WEIGHTS / f"{name}.pt", backend=backend)
    dataset = CamVid(shared_data("data", "camvid"), "val", EvalTransform(metadata["short_side"]))
    matrix = evaluate(model, Subset(dataset, SUBSET))
    assert scores(matrix) == pytest.approx(SUBSET_SCORES[name], abs=0.005)
