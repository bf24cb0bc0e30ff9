"""The weights that come with the package reach the figures of their model card."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Subset

import fastseg
from fastseg.data import CAMVID_CLASSES, CAMVID_PALETTE, CamVid, EvalTransform
from fastseg.segment.segmenter import Segmenter, shipped_weights
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


VESSELS = "unet_drive"
TEST_PICTURES = ("05", "10", "15", "20")
"""The pictures of DRIVE that it was not trained on, nor chosen by."""


def test_all_weights_are_tested():
    assert sorted([*SUBSET_SCORES, VESSELS]) == shipped_weights()


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


@pytest.mark.parametrize("backend", ["torch", "fastseg"])
def test_vessels_have_the_area_under_the_roc_curve_of_the_card(backend, shared_data):
    """Of the probabilities of all pixels in the field of view."""
    folder = shared_data("data", "drive")
    segmenter = Segmenter.load(VESSELS, backend=backend)
    assert list(segmenter.classes) == ["background", "vessel"]
    assert (WEIGHTS / f"{VESSELS}.pt").stat().st_size < 1_100_000
    scores, truths = [], []
    for number in TEST_PICTURES:
        picture = Image.open(folder / f"test/{number}_test.png").convert("RGB")
        with torch.inference_mode():
            logits = segmenter.model(segmenter.prepare(picture))
            logits = F.interpolate(logits, picture.size[::-1], mode="bilinear")
        seen = np.array(Image.open(folder / f"test_mask/{number}_test_mask.png")) > 127
        vessel = np.array(Image.open(folder / f"test_manual1/{number}_manual1.png")) > 127
        scores.append((logits[0, 1] - logits[0, 0]).numpy()[seen])
        truths.append(vessel[seen])
    score, vessel = np.concatenate(scores), np.concatenate(truths)
    ranks = np.empty(len(score))
    ranks[score.argsort(kind="stable")] = np.arange(1, len(score) + 1)
    count = vessel.sum()
    area = (ranks[vessel].sum() - count * (count + 1) / 2) / (count * (len(vessel) - count))
    assert area == pytest.approx(0.976, abs=0.001)
    assert ((score > 0) == vessel).mean() == pytest.approx(0.956, abs=0.001)
