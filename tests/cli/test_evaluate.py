"""fastseg evaluate: what is scored, and the files of scores."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.cli import main
from fastseg.metrics import BoundaryF1, BoundaryIoU, ConfusionMatrix, TrimapCurve
from fastseg.models import build_model
from fastseg.segment.report import MAX_HEIGHT, WIDTH, _data_url
from fastseg.zoo.checkpoint import save_model
from tests.data import own_pictures as own
from tests.data.own_pictures import make_pictures, true_ids
from tests.train.synthetic_camvid import make_camvid


def save_weights(path, classes):
    torch.manual_seed(0)
    options = {"width": 4, "kernel_size": 3}
    names = [own.class_name(k) for k in range(classes)]
    metadata = {"model": "segnet_basic", "options": options, "classes": names, "short_side": 40}
    metadata |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    metadata["palette"] = [[40 * k, 10, 10] for k in range(classes)]
    save_model(path, build_model("segnet_basic", classes, **options), metadata)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_pictures(tmp_path / "own", 6, classes=3)
    save_weights(tmp_path / "small.pt", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


DATA = ["--images", "own/img", "--masks", "own/mask"]
WEIGHTS = ["evaluate", "--weights", "small.pt", *DATA]


def evaluated(*arguments):
    assert main([*arguments, "--json", "s.json"]) == 0
    with open("s.json") as file:
        return json.load(file)


def test_all_metrics_are_those_of_the_masks(folder):
    found = evaluated(*WEIGHTS)
    assert main(["segment", "own/img", "--weights", "small.pt", "-o", "out"]) == 0
    metrics = [kind(3, 255) for kind in (ConfusionMatrix, BoundaryF1, BoundaryIoU, TrimapCurve)]
    for k in range(6):
        predicted = torch.from_numpy(np.array(Image.open(f"out/p{k}.png")))
        truth = torch.from_numpy(true_ids(k, 3, tuple(predicted.shape)))
        for metric in metrics:
            metric.update(predicted, truth)
    for metric in metrics[:3]:
        for name, value in metric.compute().items():
            assert found[name] == pytest.approx(value, nan_ok=True), name
    assert found["miou"] == found["mean_iou"]
    assert found["confusion_matrix"] == metrics[0].counts.tolist()
    assert found["trimap"] == pytest.approx(metrics[3].compute())
    ious = {name: scores["iou"] for name, scores in found["classes"].items()}
    assert list(ious) == [own.class_name(k) for k in range(3)]
    np.testing.assert_allclose(
        [np.nan if v is None else v for v in ious.values()], metrics[0].ious().tolist()
    )


def test_masks_in_a_folder_are_scored_like_the_network(folder):
    found = evaluated(*WEIGHTS)
    assert main(["segment", "own/img", "--weights", "small.pt", "-o", "out"]) == 0
    masks = evaluated("evaluate", "--predictions", "out", *DATA, "--classes", "own/names.txt")
    for name in ("miou", "confusion_matrix", "boundary_f1", "trimap", "pictures"):
        assert masks[name] == found[name]
    truth = evaluated("evaluate", "--predictions", "own/mask", *DATA, "--classes", "own/names.txt")
    assert truth["miou"] == truth["pixel_accuracy"] == 1


def test_a_part_is_scored(folder):
    (folder / "part.json").write_text('{"train": ["p0"], "val": ["p1", "p2"], "test": ["p4"]}')
    (folder / "part.txt").write_text("p3\n")
    for split, names in {
        "part.json": ["p1", "p2"],
        "part.json:test": ["p4"],
        "part.json:train": ["p0"],
        "part.txt": ["p3"],
    }.items():
        found = evaluated(*WEIGHTS, "--split", split)
        assert [p["name"] for p in found["pictures"]] == names


def test_camvid_by_its_parts(folder, capsys):
    make_camvid(folder / "camvid")
    arguments = ["evaluate", "--weights", "segnet_basic_camvid", "--data", "camvid"]
    assert main([*arguments, "--short-side", "48", "--split", "test"]) == 0
    assert "IoU sky" in capsys.readouterr().out


class Reader(HTMLParser):
    """Checks that every element is closed, and collects attributes."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "input", "line", "polyline"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_file_with_everything_in_it(folder):
    (folder / "own/names.txt").write_text("class a\nclass <b> & c\nclass c\n")
    assert main(["segment", "own/img", "--weights", "small.pt", "-o", "out"]) == 0
    arguments = ["--predictions", "out", *DATA, "--classes", "own/names.txt", "-o", "scores"]
    assert main(["evaluate", *arguments]) == 0
    page = (folder / "scores/report.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert all(link.startswith("data:image/jpeg;base64,") for link in reader.links)
    assert len(reader.links) == 12, "truth and prediction of three worst and three best pictures"
    assert not re.search(r"https?://|<script src|<link", page)
    assert "class <b> & c" in "".join(reader.text)
    for title in ("Scores", "Classes", "Confusion matrix", "Near the boundaries", "Worst pictures"):
        assert title in page
    found = json.loads((folder / "scores/score.json").read_text())
    assert f"{found['miou']:.4f}" in page
    worst = min(found["pictures"], key=lambda p: p["miou"])
    shown = re.findall(r"<figcaption>(p\d):", page)
    assert shown[0] == worst["name"]
    assert len(set(shown)) == 6


def test_names_that_are_no_utf_8(folder):
    name = os.fsdecode(b"caf\xe9")
    for kind in ("img", "mask"):
        (folder / f"own/{kind}/p0.png").rename(folder / f"own/{kind}/{name}.png")
    assert main([*WEIGHTS, "--html", "r.html", "--json", "s.json"]) == 0
    assert "<figcaption>caf\\udce9: " in (folder / "r.html").read_text()
    found = json.loads((folder / "s.json").read_text())
    assert name in [picture["name"] for picture in found["pictures"]]


@pytest.mark.parametrize("size", [(8, 2000), (1, 65000), (2000, 8), (30, 40)])
def test_pictures_of_a_report_are_no_larger_than_a_jpeg(size):
    url = _data_url(Image.new("RGB", size))
    width, height = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size
    assert width <= WIDTH
    assert height <= MAX_HEIGHT
    assert (size != (30, 40)) or (width, height) == (WIDTH, WIDTH * 4 / 3)


def test_a_browser_shows_the_report(folder):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    assert main([*WEIGHTS, "--html", "r.html"]) == 0
    page, shot = (folder / "r.html").as_uri(), folder / "r.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,2600"]
    subprocess.run(
        [chromium, *options, f"--user-data-dir={folder}/profile", f"--screenshot={shot}", page],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    bars = (abs(pixels - (0x34, 0x67, 0xC8)).max(-1) < 3).sum()
    assert bars > 300, "the bars of the classes and the curve"
    pictures = (pixels.max(-1) < 200).mean()
    assert pictures > 0.1, "the pictures are there"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--classes", "two.txt"], "which is no class"),
        (
            ["--classes", "other.txt"],
            "small.pt knows 3 classes, class a, class b, class c, ...: other",
        ),
        (["--split", "val"], "--split val needs --data with such a part"),
        (["--split", "none.json"], "neither shares"),
        (["--json", "none/s.json"], "there is no folder none"),
        (["--html", "own"], "own: cannot be written (it is a folder)"),
        (["--weights", "none.pt"], "no checkpoint at none.pt"),
        (["--option", "foo=1"], "'foo'"),
        (["--device", "cuda:99"], "--device cuda:99: torch sees"),
        (["--threads", "-1"], "--threads -1: at least 0"),
    ],
)
def test_what_cannot_be_used(folder, capsys, arguments, said):
    (folder / "two.txt").write_text("class a\nclass b\n")
    (folder / "other.txt").write_text("x\ny\nz\n")
    assert main([*WEIGHTS, *arguments]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


def test_predictions_that_cannot_be_used(folder, capsys):
    arguments = ["evaluate", *DATA, "--classes", "own/names.txt", "--predictions"]
    assert main([*arguments, "none"]) == 2
    assert "--predictions none: not a folder" in capsys.readouterr().err
    (folder / "out").mkdir()
    assert main([*arguments, "out"]) == 2
    assert "out/p0.png: no such file" in capsys.readouterr().err
    Image.new("L", (3, 3)).save(folder / "out/p0.png")
    assert main([*arguments, "out"]) == 2
    assert "out/p0.png: is 3x3, its picture 56x40" in capsys.readouterr().err
    Image.new("L", (56, 40), 9).save(folder / "out/p0.png")
    assert main([*arguments, "out"]) == 2
    assert "out/p0.png: holds id 9, of 3 classes" in capsys.readouterr().err
