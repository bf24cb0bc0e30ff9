"""A state_dict of fastseg's own, which says nothing but its tensors, in every command."""

from __future__ import annotations

import json

import pytest
import torch

from fastseg.cli import main
from fastseg.data import normalise
from fastseg.models import build_model
from fastseg.segment.segmenter import Segmenter
from tests.data.own_pictures import make_pictures

WEIGHTS = ["--weights", "bare.pth", "--model", "unet"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with pictures and a file that holds a state_dict alone."""
    make_pictures(tmp_path / "own", 2, classes=3)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(build_model("unet", 3, width=4, depth=2).state_dict(), "bare.pth")


def test_a_picture_is_segmented(capsys):
    assert main(["segment", "own/img/p0.png", *WEIGHTS, "-o", "out.png"]) == 0
    assert "unet on cpu" in capsys.readouterr().out


def test_pictures_are_scored(capsys):
    data = ["--images", "own/img", "--masks", "own/mask"]
    names = Segmenter.load("bare.pth", model="unet").classes
    with open("names.txt", "w") as file:
        file.write("\n".join(names))
    assert main(["evaluate", *WEIGHTS, *data, "--classes", "names.txt", "--json", "s.json"]) == 0
    with open("s.json") as file:
        assert list(json.load(file)["classes"]) == list(names)


def test_a_file_for_other_runtimes_is_written(capsys):
    assert main(["export", *WEIGHTS, "-o", "net.pt2", "--size", "32", "32"]) == 0
    assert "agrees" in capsys.readouterr().out
    with open("net.pt2.json") as file:
        assert json.load(file)["mean"] == [0.485, 0.456, 0.406]


def test_pictures_are_prepared_with_imagenets_mean_and_std():
    segmenter = Segmenter.load("bare.pth", model="unet", short_side=40)
    picture = segmenter.read("own/img/p0.png")
    assert min(picture.size) == 40
    torch.testing.assert_close(segmenter.prepare(picture), normalise(picture)[None])


@pytest.mark.parametrize("pictures", ["own/img/p0.png", "own/img"])
def test_a_network_of_one_class_has_no_masks(pictures, capsys):
    torch.save(build_model("unet", 1, width=4, depth=2).state_dict(), "bare.pth")
    assert main(["segment", pictures, *WEIGHTS, "-o", "out"]) == 2
    assert "the network has one class, whose map would be zeros" in capsys.readouterr().err
