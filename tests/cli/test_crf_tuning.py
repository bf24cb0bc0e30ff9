"""``fastseg crf --tune``: numbers that score higher, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.cli import main
from fastseg.cli.crf_tuning import draw_scores
from fastseg.models import build_model
from fastseg.segment.crf_search import CRFSetting, Search
from fastseg.zoo.checkpoint import save_model
from tests.data.own_pictures import make_pictures, true_ids

SIZE = (40, 56)
CLASSES = 3
DATA = ["--images", "own/img", "--masks", "own/mask", "--classes", "own/names.txt"]
SAVED = [*DATA, "--unary", "saved", "--kind", "softmax"]


@pytest.fixture
def folder(tmp_path, monkeypatch, one_thread):
    """Pictures with masks, and noisy probabilities of a network that nobody has."""
    make_pictures(tmp_path / "own", 3, classes=CLASSES, sizes=[SIZE])
    (tmp_path / "saved").mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        scores = np.eye(CLASSES)[true_ids(k, CLASSES, SIZE)].transpose(2, 0, 1)
        scores = scores + rng.normal(scale=1.0, size=scores.shape)
        q = np.exp(scores) / np.exp(scores).sum(0)
        np.savez(tmp_path / f"saved/p{k}.npz", q.astype(np.float16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tune(*arguments):
    return main(["crf", "--tune", *map(str, arguments)])


def scores_of(text: str) -> list[float]:
    found = re.search(r"mIoU (\S+) without the CRF, (\S+) as given, (\S+) tuned", text)
    return [float(score) for score in found.groups()]


def test_tuning_raises_the_score_and_the_files_say_by_what(folder, capsys):
    bad = ["--gaussian", 1, 0.1, "--bilateral", 80, 200, 0.1]
    assert tune(*SAVED, *bad, "--rounds", 1, "--iterations", 3) == 0
    out = capsys.readouterr().out
    without, given, tuned = scores_of(out)
    assert tuned > given + 0.02 > without, out
    config = json.loads((folder / "tuned/crf.json").read_text())
    assert set(config) == {"gaussian", "bilateral", "iterations", "quality"}
    with (folder / "tuned/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["miou"]))
    assert float(best["miou"]) == pytest.approx(tuned, abs=1e-4)
    assert [float(best["gaussian_sxy"]), float(best["gaussian_weight"])] == config["gaussian"]
    assert float(best["bilateral_weight"]) == config["bilateral"][2]
    assert Image.open(folder / "tuned/scores.png").size == (3 * 480, 2 * 280)
    assert out.count("\n") < 20

    first = (folder / "tuned/table.csv").read_bytes()
    assert tune(*SAVED, *bad, "--rounds", 1, "--iterations", 3, "-o", "again") == 0
    assert (folder / "again/table.csv").read_bytes() == first, "the same in every run"


def test_the_file_is_a_config_of_the_command(folder, capsys):
    arguments = ["--bilateral", 50, 9, 4, "--quality", "compat", "--iterations", 2, "--rounds", 0]
    assert tune(*SAVED, *arguments) == 0
    one = ["crf", "own/img/p0.png", "--unary", "saved/p0.npz", "--kind", "softmax"]
    assert main([*one, "--config", "tuned/crf.json", "-o", "config.png"]) == 0
    assert "2 iterations, quality compat" in capsys.readouterr().out
    numbers = [
        "--gaussian",
        "3",
        "3",
        "--bilateral",
        "50",
        "9",
        "4",
        "--quality",
        "compat",
        "--iterations",
        "2",
    ]
    assert main([*one, *numbers, "-o", "numbers.png"]) == 0
    assert (folder / "config.png").read_bytes() == (folder / "numbers.png").read_bytes()


def test_scores_are_those_of_evaluate_on_what_crf_writes(folder, capsys):
    """The tuning's figure of a setting, by way of files."""
    assert tune(*SAVED, "--rounds", 0) == 0
    _, given, _ = scores_of(capsys.readouterr().out)
    (folder / "refined").mkdir()
    for k in range(3):
        one = ["crf", f"own/img/p{k}.png", "--unary", f"saved/p{k}.npz", "--kind", "softmax"]
        assert main([*one, "-o", f"refined/p{k}.png"]) == 0
    assert main(["evaluate", "--predictions", "refined", *DATA, "--json", "score.json"]) == 0
    assert json.loads((folder / "score.json").read_text())["miou"] == pytest.approx(given, abs=1e-4)


def test_a_network_computes_the_outputs(folder, capsys):
    torch.manual_seed(0)
    options = {"width": 4, "kernel_size": 3}
    names = (folder / "own/names.txt").read_text().split("\n")[:CLASSES]
    metadata = {"model": "segnet_basic", "options": options, "classes": names}
    metadata |= {"palette": [[k, k, k] for k in range(CLASSES)], "short_side": 40}
    metadata |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    save_model("small.pt", build_model("segnet_basic", CLASSES, **options), metadata)
    assert tune(*DATA, "--weights", "small.pt", "--rounds", 0, "--split", "0.5,0.5") == 0
    out = capsys.readouterr().out
    assert "2 pictures, 3 classes" in out
    assert (
        main(["segment", "own/img", "--weights", "small.pt", "-o", "out", "--probabilities"]) == 0
    )
    assert (
        tune(*DATA, "--unary", "out", "--kind", "softmax", "--rounds", 0, "--split", "0.5,0.5") == 0
    )
    for one, other in zip(scores_of(out), scores_of(capsys.readouterr().out), strict=True):
        assert one == pytest.approx(other, abs=0.01), "float16 keeps three digits"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--tune", *DATA, "--labels", "own/mask"], "--tune takes --unary DIR or --weights"),
        (["--tune", "own/img/p0.png", *SAVED], "--tune takes --unary DIR or --weights"),
        (["--tune", *DATA, "--unary", "saved/p0.npz"], "with --tune it is a folder"),
        (["--tune", *DATA, "--unary", "own"], "own/p0.npz: no output for own/img/p0.png"),
        (["--tune", *SAVED, "--rounds", "4"], "--rounds 4: 0 to 3"),
        (["--tune", "--unary", "saved"], "give either --data DIR, or --images DIR"),
        (["--tune", *SAVED, "--weights", "small.pt"], "not allowed with argument"),
        (["--tune", *DATA, "--weights", "none.pt"], "no checkpoint at none.pt"),
        (["--unary", "saved/p0.npz"], "give a picture"),
        (["own/img/p0.png", "--weights", "small.pt"], "fastseg segment --crf"),
    ],
)
def test_what_is_refused(folder, capsys, arguments, reason):
    try:
        status = main(["crf", *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert reason in capsys.readouterr().err


def test_outputs_of_another_number_of_labels(folder, capsys):
    np.savez(folder / "saved/p1.npz", np.full((4, *SIZE), 0.25))
    assert tune(*SAVED) == 2
    assert "p1.npz: holds 4 labels, the masks have 3 classes" in capsys.readouterr().err


def test_a_picture_of_one_score_and_of_a_weight_of_zero():
    search = Search({CRFSetting((3.0, 0.0)): 0.5})
    assert draw_scores(search).size == (3 * 480, 2 * 280)
