"""Many pictures at once: folders, patterns, what is written, what is broken, and going on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fastseg.cli import main
from fastseg.segment.jobs import find_jobs
from tests.segment.conftest import CLASSES, PALETTE


def segment(weights, *arguments):
    return main(["segment", *arguments, "--weights", weights])


def written(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))


def test_masks_are_palette_pngs_of_class_ids(folder, weights, capsys):
    assert segment(weights, "img", "-o", "out") == 0
    assert "3 pictures, segnet_basic on cpu: 3 written" in capsys.readouterr().out
    assert written(folder / "out") == ["a.png", "b.png", "segment.json", "sub/c.png"]
    for name, size in (("a", (41, 30)), ("b", (30, 41))):
        mask = Image.open(folder / f"out/{name}.png")
        assert (mask.mode, mask.size) == ("P", size)
        assert mask.getpalette()[:9] == [c for colour in PALETTE for c in colour]
        assert np.asarray(mask).max() < 3


def test_a_picture_by_itself_gets_the_same_mask_in_a_folder(folder, weights):
    assert segment(weights, "img", "-o", "out") == 0
    assert segment(weights, "img/a.png", "-o", "one") == 0
    assert (folder / "one/a.png").read_bytes() == (folder / "out/a.png").read_bytes()


def test_batches_change_nothing(folder, weights):
    for k in range(4):
        Image.effect_noise((41, 30), 60).save(folder / f"img/z{k}.png")
    assert segment(weights, "img", "-o", "single") == 0
    assert segment(weights, "img", "-o", "batched", "--batch-size", "3") == 0
    for name in written(folder / "single"):
        if name.endswith(".png"):
            first, other = (
                np.asarray(Image.open(folder / f / name)) for f in ("single", "batched")
            )
            assert (first == other).mean() > 0.999, name


def test_what_pillow_warns_of_is_silent_in_threads(folder, weights):
    """It names no file, and the pixels are read all the same."""
    exif = Image.Exif()
    exif[0x010E] = 20 * "x"
    for k in range(2):
        Image.new("RGB", (41, 30)).save(folder / f"img/y{k}.jpg", exif=exif.tobytes()[:30])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with Image.open(folder / "img/y0.jpg") as image:
            image.getexif()
        assert len(warned) == 1
    command = [sys.executable, "-m", "fastseg", "segment", "img", "-o", "out", "--weights", weights]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr


def test_probabilities_and_overlays(folder, weights, capsys):
    assert segment(weights, "img/a.png", "-o", "out", "--probabilities", "--overlay") == 0
    q = np.load("out/a.npz")["probabilities"]
    assert (q.shape, q.dtype) == ((3, 30, 41), np.float16)
    np.testing.assert_allclose(q.astype(np.float32).sum(0), 1, atol=0.01)
    mask = np.asarray(Image.open("out/a.png")).astype(int)
    # Two classes may be the most probable ones when they are rounded.
    np.testing.assert_array_equal(np.take_along_axis(q, mask[None], 0)[0], q.max(0))
    assert Image.open("out/a_overlay.png").width > 41
    capsys.readouterr()
    arguments = ["crf", "img/a.png", "--unary", "out/a.npz", "--kind", "softmax", "-o", "crf.png"]
    assert main(arguments) == 0


def test_broken_pictures_are_reported_and_left_out(folder, weights, capsys):
    (folder / "img/b.jpg").write_text("no picture")
    (folder / "img/d.png").write_bytes((folder / "img/a.png").read_bytes()[:200])
    assert segment(weights, "img", "-o", "out") == 1
    out, err = capsys.readouterr()
    assert "fastseg: img/b.jpg: not an image" in err
    assert "fastseg: img/d.png: damaged or truncated" in err
    assert "2 written, 2 broken" in out
    assert written(folder / "out") == ["a.png", "segment.json", "sub/c.png"]


def test_what_is_there_is_not_made_again(folder, weights, capsys):
    assert segment(weights, "img", "-o", "out") == 0
    (folder / "out/a.png").unlink()
    before = (folder / "out/b.png").stat().st_mtime_ns
    capsys.readouterr()
    assert segment(weights, "img", "-o", "out") == 0
    assert "1 written, 2 there already" in capsys.readouterr().out
    assert (folder / "out/b.png").stat().st_mtime_ns == before
    assert segment(weights, "img", "-o", "out", "--overwrite") == 0
    assert "3 written" in capsys.readouterr().out
    assert segment(weights, "img", "-o", "out", "--flip") == 0, "other settings, other masks"
    assert "3 written" in capsys.readouterr().out
    record = json.loads((folder / "out/segment.json").read_text())
    assert record["settings"]["flip"] is True
    assert record["files"] == ["a.png", "b.png", "sub/c.png"]


def test_nothing_of_the_users_is_overwritten(folder, weights, capsys):
    before = (folder / "img/a.png").read_bytes()
    assert segment(weights, "img", "-o", "img") == 2
    assert "a.png is a picture to segment: give another folder" in capsys.readouterr().err
    (folder / "out").mkdir()
    (folder / "out/a.png").write_text("my own")
    assert segment(weights, "img", "-o", "out") == 2
    assert "out/a.png is there and was not made by this command" in capsys.readouterr().err
    assert (folder / "out/a.png").read_text() == "my own"
    assert (folder / "img/a.png").read_bytes() == before


def test_files_folders_and_patterns(folder):
    def names(*inputs):
        return [job.name for job in find_jobs(inputs)]

    assert names("img") == ["a", "b", "sub/c"]
    assert names("img/*.png") == ["a"]
    assert names("img/**/*.png") == ["a", "c"]
    assert names("img/a.png", "img/sub") == ["a", "c"]
    assert names("img/a.png", "img") == ["a", "b", "sub/c"]
    Image.new("L", (2, 2)).save("img/a.bmp")
    assert names("img/a.png", "img/a.bmp") == ["a.png", "a.bmp"]
    Image.new("L", (2, 2)).save("img/[1].png")
    assert names("img/[1].png") == ["[1]"], "a file whose name looks like a pattern"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "none: no such file"),
        (["img/*.gif"], "img/*.gif: no file has such a name"),
        (["empty"], "empty: has no pictures"),
        (["img", "-o", "img/a.png"], "img/a.png: many masks need a folder, this is a file"),
        (["img", "--batch-size", "0"], "--batch-size 0: at least 1"),
        (["img", "--scales", "9"], "--scales: must be 0.1 to 4, got [9.0]"),
        (["img", "--tile", "3"], "--tile 3: at least 32 pixels"),
        (["img", "--beside", "x"], "--beside and --compare take one picture"),
        (["img/a.png", "--batch-size", "-3"], "--batch-size -3: at least 1"),
        (["img/a.png", "--scales", "99"], "--scales: must be 0.1 to 4, got [99.0]"),
        (["img/a.png", "--tile", "-5"], "--tile -5: at least 32 pixels"),
        (["img/a.png", "--short-side", "65537"], "short_side must be at most 65536, got 65537"),
        (["img/a.png", "--threads", "1025"], "--threads 1025: at least 0, torch's choice, and at "),
        (["img/a.png", "-o", "x.png", "--overlay"], "x.png: masks go into a folder, with what"),
    ],
)
def test_what_cannot_be_used(folder, weights, capsys, arguments, said):
    (folder / "empty").mkdir()
    assert segment(weights, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == f"fastseg: {said}" or said in err
    assert out == ""


def test_coco_of_all_masks(folder, weights, capsys):
    (folder / "img/broken.png").write_text("no picture")
    assert segment(weights, "img", "-o", "out", "--coco", "all.json") == 1
    assert "3 of them in all.json" in capsys.readouterr().out
    found = json.loads((folder / "all.json").read_text())
    names = [image["file_name"] for image in found["images"]]
    assert names == ["a.png", "b.jpg", "sub/c.png"]
    assert find_jobs(["a.png.png"])[0].file_name == "a.png.png"
    assert [c["name"] for c in found["categories"]] == CLASSES
    areas = {(a["image_id"], a["category_id"]): a["area"] for a in found["annotations"]}
    for number, name in enumerate(("a", "b", "sub/c"), 1):
        mask = np.asarray(Image.open(folder / f"out/{name}.png"))
        for k, count in zip(*np.unique(mask, return_counts=True), strict=True):
            assert areas[number, k] == count

    before = (folder / "all.json").read_bytes()
    (folder / "out/a.png").unlink()
    assert segment(weights, "img", "-o", "out", "--coco", "all.json") == 1
    assert (folder / "all.json").read_bytes() == before, "also of what was there already"
    assert segment(weights, "img", "-o", "out", "--coco", "none/all.json") == 2
    assert "there is no folder none" in capsys.readouterr().err


def test_coco_of_names_that_are_no_utf_8(folder, weights):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy("img/a.png", f"img/sub/{name}")
    assert segment(weights, "img/sub", "-o", "out", "--coco", "all.json") == 0
    found = json.loads((folder / "all.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["c.png", name]


def test_a_name_that_is_too_long_leaves_the_others(folder, weights, capsys):
    shutil.copy("img/a.png", f"img/{'0' * 251}.png")  # with .png 255 bytes, with _overlay.png more
    assert segment(weights, "img", "-o", "out") == 0
    assert segment(weights, "img", "-o", "drawn", "--overlay", "--coco", "all.json") == 1
    out, err = capsys.readouterr()
    assert "3 written, 1 broken" in out
    assert f"fastseg: img/{'0' * 251}.png: drawn/{'0' * 251}_overlay.png cannot be written" in err
    assert not list((folder / "drawn").glob(".*"))


def test_a_full_disk_ends_the_run(folder, weights, capsys, monkeypatch):
    def full(self, file, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert segment(weights, "img", "-o", "out") == 2
    assert capsys.readouterr().err.endswith("fastseg: out/a.png: No space left on device\n")


def test_results_that_would_replace_each_other(folder, weights, capsys):
    shutil.copy("img/a.png", "img/a_overlay.png")
    assert segment(weights, "img", "-o", "out", "--overlay") == 2
    said = "out/a_overlay.png would be a result of img/a.png and of img/a_overlay.png: rename one"
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()
    assert segment(weights, "img", "-o", "out") == 0


def test_a_single_picture_is_computed_like_many(folder, weights, monkeypatch):
    """Scales, flips and tiles count for a picture that is drawn, too."""
    drawn = {}

    def remember(shown, labelings, *_):
        drawn.update(labelings)
        return shown

    monkeypatch.setattr("fastseg.cli.segment.overlay", remember)
    options = ["--scales", "0.5", "2", "--flip", "--tile", "32"]
    assert segment(weights, "img/a.png", "-o", "one.png", *options) == 0
    assert segment(weights, "img/a.png", "-o", "out", *options) == 0
    mask = np.asarray(Image.open("out/a.png"))
    np.testing.assert_array_equal(drawn["segnet_basic"], mask)
    assert segment(weights, "img/a.png", "-o", "one.png") == 0
    assert (drawn["segnet_basic"] != mask).any(), "the options change something"


def test_frames_of_a_video_get_masks(folder, weights, monkeypatch):
    package = ModuleType("imageio_ffmpeg")
    package.count_frames_and_secs = lambda path: (3, 1.0)

    def frames(path):
        yield {"size": (41, 30)}
        for k in range(3):
            yield bytes([60 * k]) * (3 * 41 * 30)

    package.read_frames = frames
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", package)
    (folder / "drive.mp4").write_text("frames")
    assert segment(weights, "drive.mp4", "-o", "out", "--batch-size", "2") == 0
    assert written(folder / "out") == [
        "drive/000001.png",
        "drive/000002.png",
        "drive/000003.png",
        "segment.json",
    ]
