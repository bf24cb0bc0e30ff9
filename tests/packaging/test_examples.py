"""Every program of ``examples/`` runs, at small size, and does what its page says."""

from __future__ import annotations

import json
import runpy

import numpy as np
import pytest
import torch
from PIL import Image

from tests.packaging.pages import ROOT
from tests.zoo.other_models import import_or_skip

EXAMPLES = ROOT / "examples"
TESTED = {
    "optimize_torchvision.py",
    "own_segnet.py",
    "replace_pydensecrf.py",
    "segment_folder.py",
    "segment_with_ray.py",
    "tour.ipynb",
    "train_crf_layer.py",
}


def load(name: str) -> dict:
    """Returns the names of an example, which is not run as a program."""
    return runpy.run_path(str(EXAMPLES / name))


def test_every_example_is_tested_and_on_its_page():
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == TESTED
    page = (ROOT / "docs" / "examples.md").read_text()
    assert all(f"`examples/{name}`" in page for name in files)


def test_optimize_torchvision():
    import_or_skip("torchvision")
    assert load("optimize_torchvision.py")["main"](["--size", "65", "--runs", "1"]) < 1e-4


def test_replace_pydensecrf():
    before, after, difference = load("replace_pydensecrf.py")["main"](40, 60)
    assert before < 0.8 < 0.95 < after
    assert difference < 1e-4


def test_train_crf_layer(one_thread):
    losses = load("train_crf_layer.py")["main"](["--steps", "12", "--size", "16"])
    assert min(losses) > 0, "a negative logarithm of probabilities"
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def test_own_segnet(one_thread):
    losses = load("own_segnet.py")["main"](size=(24, 32), steps=15)
    assert losses[-1] < 0.7 * losses[0]


def test_own_segnet_takes_sizes_that_no_pooling_divides():
    model = load("own_segnet.py")["OwnSegNet"](5).eval()
    assert model(torch.randn(1, 3, 27, 35)).shape == (1, 5, 27, 35)


@pytest.mark.parametrize("crf", [[], ["--crf"]])
def test_segment_folder(tmp_path, crf):
    pictures, output = tmp_path / "pictures", tmp_path / "new" / "output"
    pictures.mkdir()
    photo = Image.open(ROOT / "fastseg" / "weights" / "photo.jpg")
    photo.resize((96, 64)).save(pictures / "b.jpg")
    photo.resize((64, 96)).save(pictures / "a.PNG")
    (pictures / "notes.txt").write_text("no picture")
    weights = ["--weights", "segnet_basic_camvid"]
    written = load("segment_folder.py")["main"]([str(pictures), str(output), *weights, *crf])
    assert written == [output / "a.png", output / "b.png"]
    assert Image.open(written[1]).height >= 64


@pytest.mark.parametrize("name", ["segment_folder.py", "segment_with_ray.py"])
def test_examples_replace_no_picture(tmp_path, name):
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"a\.png is a picture to segment: give another folder"):
        load(name)["main"]([str(tmp_path), str(tmp_path)])
    assert (tmp_path / "a.png").read_bytes() == before


def test_segment_folder_of_pictures_of_one_name(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / name)
    arguments = [str(tmp_path), str(tmp_path / "out"), "--weights", "segnet_basic_camvid"]
    written = load("segment_folder.py")["main"](arguments)
    assert [path.name for path in written] == ["a.jpg.png", "a.png.png"]


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures, one of them broken, in folders."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    photo = Image.open(ROOT / "fastseg" / "weights" / "photo.jpg")
    photo.resize((96, 64)).save(folder / "b.jpg")
    photo.resize((64, 96)).save(folder / "sub" / "a.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def check_masks(output, problems):
    assert sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png")) == [
        "b.png",
        "sub/a.png",
    ]
    mask = Image.open(output / "sub/a.png")
    assert (mask.mode, mask.size) == ("P", (64, 96))
    assert len(problems) == 1
    assert "broken.png: not an image" in problems[0]


def test_worker_of_segment_with_ray(pictures, tmp_path):
    """What Ray gives a worker, without Ray."""
    worker = load("segment_with_ray.py")["SegmentPictures"](
        str(tmp_path / "out"), "segnet_basic_camvid", threads=torch.get_num_threads()
    )
    names = ("b.jpg", "broken.png", "sub/a.png")
    batch = {
        "image": np.array([str(pictures / name) for name in names]),
        "name": np.array([name.partition(".")[0] for name in names]),
    }
    result = worker(batch)
    assert list(result["name"]) == ["b", "broken", "sub/a"]
    check_masks(tmp_path / "out", [problem for problem in result["problem"] if problem])


def test_segment_with_ray(pictures, tmp_path):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        arguments = ["--weights", "segnet_basic_camvid", "--workers", "1", "--batch-size", "2"]
        main = load("segment_with_ray.py")["main"]
        problems = main([str(pictures), str(tmp_path / "out"), *arguments])
    finally:
        ray.shutdown()
    check_masks(tmp_path / "out", problems)


def test_tour_runs_and_holds_its_outputs():
    """The notebook's cells run in their order; its outputs are small and without errors."""
    path = EXAMPLES / "tour.ipynb"
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    namespace: dict = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), str(path), "exec"), namespace)
    assert (namespace["refined"] != namespace["labels"]).any()
    assert (namespace["after"] - namespace["before"]).abs().max() < 1e-3
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 3
    assert path.stat().st_size < 300_000
