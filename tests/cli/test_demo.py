"""``fastseg demo``: its picture, what it prints, its rough masks, and what is refused."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
from PIL import Image

from fastseg.cli import demo, main
from fastseg.cli.timing import interleaved_medians
from fastseg.data.image import read_image
from fastseg.segment.demo import BLOCK, NAMES, photo_file, scribbles, squares


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Each way is timed a few times only; without pydensecrf, wherever the tests run."""
    monkeypatch.setattr("fastseg.cli.timing.MIN_ROUNDS", 1)
    monkeypatch.setattr("fastseg.cli.timing.MIN_SECONDS", 0)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    assert interleaved_medians.__module__ == "fastseg.cli.timing"


def test_the_photo_of_the_package(tmp_path, capsys):
    path = tmp_path / "demo.png"
    assert main(["demo", "-o", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "480 x 320 (china.jpg of scikit-learn, CC BY 2.0, by valse)" in out
    assert out.count(" ms ") == 3, "torch's network, fastseg's, and the dense CRF"
    assert "pydensecrf is not installed, and torch has no dense CRF" in out
    assert re.search(r"mean confidence of deeplabv3plus: \d\d%", out)
    assert err == ""
    with Image.open(path) as picture:
        assert picture.width > 3 * 480
        assert picture.height >= 2 * 320
        top_left = np.asarray(picture)[100:300, 100:400]
    np.testing.assert_array_equal(top_left, np.asarray(read_image(photo_file()))[100:300, 100:400])


def test_scribbles_grow_to_what_they_lie_on():
    picture = read_image(photo_file())
    rough = scribbles(picture.size)
    assert set(np.unique(rough.labels)) == set(range(len(NAMES) + 1))
    assert (rough.labels > 0).mean() < 0.15, "a few lines"
    refined = rough.refined(picture, "compat")
    said = rough.labels > 0
    assert (refined[said] == rough.labels[said] - 1).mean() > 0.95
    for name, (x, y) in {"sky": (360, 110), "tower": (180, 75), "trees": (100, 270)}.items():
        assert NAMES[refined[y, x]] == name


def test_another_picture_gets_squares_of_its_classes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "UNSURE", 1.0)
    image = tmp_path / "street.png"
    Image.effect_noise((900, 300), 60).convert("RGB").save(image)
    assert main(["demo", str(image), "-o", str(tmp_path / "demo.png")]) == 0
    out, err = capsys.readouterr()
    assert "640 x 213" in out, "three of them stand in a row"
    assert "unlike the street scenes" in err


def test_squares():
    labels = np.zeros((BLOCK + 5, 2 * BLOCK), np.uint8)
    labels[:, BLOCK:] = 3
    rough = squares(labels, "abcd", [(k, k, k) for k in range(4)])
    assert (list(rough.names), list(rough.colours)) == (["a", "d"], [(0, 0, 0), (3, 3, 3)])
    np.testing.assert_array_equal(rough.labels, (labels > 0) + 1)
    one = squares(np.full((7, 7), 3, np.uint8), "abcd", [(k, k, k) for k in range(4)])
    assert list(one.names) == ["d", "a"]
    assert one.energies().shape == (2, 7, 7)


def test_pydensecrf_is_timed_where_it_is_installed(monkeypatch):
    class Other:
        """Takes every call that the interface has."""

        def __getattr__(self, name):
            return lambda *arguments, **options: self

    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", Other())
    runs = demo._crf_runs(scribbles((480, 320)), read_image(photo_file()))
    assert list(runs) == ["pydensecrf", "fastseg"]
    runs["pydensecrf"]()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.png"], "none.png: no such file"),
        (["-o", "demo.jpg"], "must end in .png"),
        (["--threads", "-1"], "--threads -1: at least 0"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    assert reason in capsys.readouterr().err
