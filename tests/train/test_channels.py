"""From pictures of many channels to a network in somebody's product: the whole way by commands."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.cli import main
from fastseg.data import ChannelImage, PictureFormat
from fastseg.export.deployed import Deployed
from fastseg.segment import Segmenter
from fastseg.segment.predictor import Predictor
from fastseg.train import Config
from fastseg.zoo import checkpoint
from fastseg.zoo.checkpoint import CheckpointError
from tests.data.many_channels import make_tiffs, pixels_of, write_tiff
from tests.zoo.other_models import import_or_skip

NETWORK = ("--model", "unet", "--option", "width=4", "--option", "depth=2", "--threads", "1")
ONCE = (*NETWORK, "--epochs", "1", "--batch-size", "2", "--augmenter", "plain")


def data(root):
    return ["--images", f"{root}/img", "--masks", f"{root}/mask", "--classes", f"{root}/names.txt"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures of five channels, and a run that has learnt from them."""
    root = make_tiffs(tmp_path_factory.mktemp("channels"))
    rotated = ["--augment", "rotate=20"]
    arguments = ["train", *data(root), "--channels", "5", *ONCE, *rotated, "--out", f"{root}/run"]
    longer = ["--epochs", "14", "--eval-every", "7", "--lr", "0.02"]
    assert main([*arguments, *longer]) == 0
    return root


@pytest.fixture
def segmenter(root):
    return Segmenter.load(f"{root}/run/best.pt")


def test_the_checkpoint_says_what_pictures_it_takes(root):
    split = json.loads((root / "run/split.json").read_text())
    together = np.stack([pixels_of(int(name[1:])) for name in split["train"]])
    told = checkpoint.load(f"{root}/run/best.pt")["metadata"]
    assert told["options"]["in_channels"] == 5
    assert (told["channels"], told["bands"], told["dtype"]) == (5, [1, 2, 3, 4, 5], "uint16")
    np.testing.assert_allclose(told["mean"], together.mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(told["std"], together.std((0, 1, 2)), rtol=1e-9)
    kept = json.loads((root / "run/config.json").read_text())
    assert kept["mean"] == told["mean"], "--config gives the same run"
    assert Image.open(root / "run/samples.png").mode == "RGB"


def test_evaluation_and_its_report(root, capsys):
    arguments = ["evaluate", *data(root), "--weights", f"{root}/run/best.pt", "--threads", "1"]
    assert main([*arguments, "--html", f"{root}/report.html", "--flip"]) == 0
    found = re.search(r"^miou +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert float(found[1]) > 0.55, "it has learnt what the fourth channel alone shows"
    assert "data:image/jpeg" in (root / "report.html").read_text()
    assert main([*arguments, "--crf"]) == 0


def test_tuning_of_the_crf_sees_the_preview(root, tmp_path, capsys):
    arguments = ["crf", "--tune", *data(root), "--weights", f"{root}/run/best.pt", "--rounds", "0"]
    assert main([*arguments, "--iterations", "2", "-o", f"{tmp_path}/tuned"]) == 0
    assert "6 pictures, 2 classes" in capsys.readouterr().out


def test_many_pictures_of_which_some_are_others(root, tmp_path, capsys):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for k in range(2):
        write_tiff(folder / f"good{k}.tif", pixels_of(k))
    write_tiff(folder / "float.tif", pixels_of(0, dtype=np.float32))
    Image.new("RGB", (48, 40)).save(folder / "rgb.png")
    arguments = ["segment", str(folder), "--weights", f"{root}/run/best.pt", "--threads", "1"]
    assert main([*arguments, "-o", f"{tmp_path}/out", "--overlay", "--crf"]) == 1
    out, err = capsys.readouterr()
    assert "2 written, 2 broken" in out
    assert "rgb.png: has 3 channels of uint8, expected 5 channels of uint16" in err
    assert "float.tif: has 5 channels of float32, expected 5 channels of uint16" in err
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert masks == [f"good{k}{end}.png" for k in (0, 1) for end in ("", "_overlay")]


def test_one_picture(root, tmp_path, capsys):
    arguments = ["--weights", f"{root}/run/best.pt", "-o", f"{tmp_path}/a.png", "--threads", "1"]
    assert main(["segment", f"{root}/img/p0.tif", *arguments, "--crf"]) == 0
    assert Image.open(tmp_path / "a.png").width > 4 * 48, "two labellings, the picture, a legend"
    Image.new("RGB", (48, 40)).save(tmp_path / "b.png")
    assert main(["segment", str(tmp_path / "b.png"), *arguments]) == 2
    assert "b.png: has 3 channels of uint8, expected 5 channels" in capsys.readouterr().err
    beside = ["--beside", "segnet_basic_camvid"]
    assert main(["segment", f"{root}/img/p0.tif", *arguments, *beside]) == 2
    assert "--beside segnet_basic_camvid has other classes" in capsys.readouterr().err


def test_segmenter_and_tiles(segmenter):
    picture = ChannelImage(pixels_of(7, size=(64, 80)))
    with pytest.raises(ValueError, match=r"Segmenter\.read .* 5 channels of uint16; got Image"):
        segmenter.prepare(Image.new("RGB", (48, 40)))
    with pytest.raises(ValueError, match="RGB pictures; got ChannelImage"):
        Segmenter.load("segnet_basic_camvid").prepare(picture)
    x = segmenter.prepare(picture)
    assert x.shape == (1, 5, 40, 50)
    whole = Predictor(segmenter, torch.device("cpu")).labels([picture])[0]
    tiled = Predictor(segmenter, torch.device("cpu"), tile=32).labels([picture])[0]
    assert whole.shape == tiled.shape == (64, 80)
    assert (whole == tiled).mean() > 0.9


def test_info(root, capsys):
    assert main(["info", "--weights", f"{root}/run/best.pt"]) == 0
    shown = capsys.readouterr().out
    assert "5 channels of uint16, of which it takes 1 2 3 4 5, short side 40" in shown
    assert re.search(r"^mean +(\d+\.?\d* ?){5}$", shown, re.MULTILINE)
    assert main(["info", "--weights", "segnet_basic_camvid"]) == 0
    assert "RGB of 8 bits, short side 240" in capsys.readouterr().out


def test_an_exported_file_takes_pictures_as_they_are(root, tmp_path, segmenter):
    path = tmp_path / "model.pt2"
    arguments = ["export", "--weights", f"{root}/run/best.pt", "-o", str(path), "--normalise"]
    assert main([*arguments, "--format", "torch_export", "--size", "40", "48"]) == 0
    pixels = pixels_of(8, dtype=np.float32)
    pixels[3, 4, 2] = np.nan
    run = torch.export.load(path).module()
    expected = segmenter(segmenter.prepare(ChannelImage(pixels)))
    torch.testing.assert_close(run(torch.from_numpy(pixels)[None]), expected, rtol=1e-3, atol=1e-3)
    (told,) = json.loads((tmp_path / "model.pt2.json").read_text())["inputs"]
    assert told["shape"][-1] == 5
    assert told["dtype"] == "float32"
    assert told["channels"] == {"channels": 5, "bands": [1, 2, 3, 4, 5], "dtype": "uint16"}


def test_bands_of_floats(tmp_path, capsys):
    """The network sees the chosen bands alone, also where it is exported."""
    root = make_tiffs(tmp_path, dtype=np.float32)
    arguments = ["train", *data(root), "--channels", "5", "--bands", "4", "2"]
    (root / "given.json").write_text(json.dumps({"mean": [-1e-5, 1000.0], "std": [1500.0, 60.0]}))
    config = ["--config", f"{root}/given.json"]
    assert main([*arguments, *config, *ONCE, "--augment", "none", "--out", f"{root}/run"]) == 0
    told = checkpoint.load(f"{root}/run/best.pt")["metadata"]
    assert (told["mean"], told["std"]) == ([-1e-5, 1000.0], [1500.0, 60.0])
    assert (told["bands"], told["dtype"]) == ([4, 2], "float32")
    segmenter = Segmenter.load(f"{root}/run/best.pt")
    pixels = pixels_of(0, dtype=np.float32)
    x = segmenter.prepare(segmenter.read(root / "img/p0.tif"))
    np.testing.assert_allclose(x[0, 1], (pixels[..., 1] - 1000) / 60, rtol=1e-4, atol=1e-4)
    deployed = Deployed(segmenter, normalise=True, class_map=False)
    with torch.inference_mode():
        found = deployed(torch.from_numpy(pixels)[None])
    torch.testing.assert_close(found, segmenter(x), rtol=1e-4, atol=1e-4)


def test_one_channel_of_16_bits_needs_no_further_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    for folder in ("img", "mask"):
        (tmp_path / folder).mkdir()
    for k in range(4):
        pixels = pixels_of(k, 1)[..., 0]
        Image.fromarray(pixels).save(tmp_path / f"img/p{k}.png")
        Image.fromarray((pixels > 2000).astype(np.uint8)).save(tmp_path / f"mask/p{k}.png")
    (tmp_path / "names.txt").write_text("other\nfield\n")
    out = str(tmp_path / "run")
    assert main(["train", *data(tmp_path), "--channels", "1", *ONCE, "--out", out]) == 0
    longer = ["--resume", "--epochs", "2"]
    assert main(["train", *data(tmp_path), "--channels", "1", *ONCE, *longer, "--out", out]) == 0
    again = ["train", *data(tmp_path), "--channels", "1", *ONCE, "--out", out, "--resume"]
    assert main([*again, "--mean", "7"]) == 2
    assert "is now [7.0]" in capsys.readouterr().err
    picture = f"{tmp_path}/img/p0.png"
    assert main(["segment", picture, "--weights", f"{out}/best.pt", "-o", f"{tmp_path}/a.png"]) == 0


def test_data_check_names_pictures_that_are_stored_in_another_way(root, tmp_path, capsys):
    images = tmp_path / "img"
    images.mkdir()
    for k in range(4):
        write_tiff(images / f"p{k}.tif", pixels_of(k))
    write_tiff(images / "p4.tif", pixels_of(4, 4))
    write_tiff(images / "p5.tif", pixels_of(5, dtype=np.float32))
    arguments = ["data", "check", "--images", str(images), "--masks", f"{root}/mask"]
    arguments += ["--classes", f"{root}/names.txt", "-o", f"{tmp_path}/sheet.png"]
    assert main([*arguments, "--channels", "5"]) == 1
    out, err = capsys.readouterr()
    assert "5 channels of uint16 (4), " in out
    assert "unlike most: p4.tif 4 channels of uint16, p5.tif 5 channels of float32" in out
    assert "p4.tif: has 4 channels of uint16, expected 5 channels of any type" in err
    assert "p5.tif: has values of float32, most have uint16" in err
    assert main(arguments) == 0, "in RGB they can all be read"
    assert "unlike most: p4.tif 4 channels of uint16, p5.tif" in capsys.readouterr().out


def test_other_pictures_than_a_run_expects(root, tmp_path, capsys):
    arguments = ["train", *data(root), *NETWORK, "--out", f"{tmp_path}/run"]
    assert main([*arguments, "--channels", "4"]) == 2
    assert "p0.tif: has 5 channels of uint16, expected 4 channels" in capsys.readouterr().err
    assert main([*arguments, "--option", "in_channels=5"]) == 2
    assert "pictures are read as 3; --channels reads them" in capsys.readouterr().err
    assert main(["data", "check", *data(root), "--bands", "1"]) == 2
    assert "--bands needs --channels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"channels": 5, "bands": (6,)}, "bands must be different numbers of 1 to 5"),
        ({"bands": (1,)}, "bands needs channels"),
        ({"mean": (0.5,) * 3}, "mean needs channels"),
        ({"channels": 2, "mean": (1.0,)}, "mean must be 2 numbers, .* got 1"),
        ({"channels": 2, "std": (1.0, 0.0)}, "std must be 2 positive numbers, .* got 1 0"),
        ({"channels": 2, "options": {"in_channels": 3}}, "in_channels=3 differs from the 2"),
    ],
)
def test_settings_that_do_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bands": [9]}, "its metadata tell no channels: bands must be"),
        ({"channels": "many"}, "its metadata tell no channels"),
        ({"std": [1.0]}, "std of 1 channels for 5 bands"),
    ],
)
def test_metadata_that_do_not_fit(root, tmp_path, changes, said):
    contents = checkpoint.load(f"{root}/run/best.pt")
    contents["metadata"] |= changes
    checkpoint.save(contents, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=rf"bad\.pt: {said}"):
        Segmenter.load(tmp_path / "bad.pt")


def test_networks_of_other_packages(root, tmp_path, capsys):
    import_or_skip("torchvision")
    arguments = ["train", *data(root), "--channels", "5", "--epochs", "1", "--threads", "1"]
    arguments += ["--out", f"{tmp_path}/run"]
    assert main([*arguments, "--model", "torchvision:fcn_resnet50"]) == 2
    assert "torchvision:fcn_resnet50 takes 3 channels, got in_chann" in capsys.readouterr().err
    import_or_skip("segmentation_models_pytorch")
    small = ["--option", "encoder_name=resnet18", "--crop", "32", "32", "--height", "32"]
    assert main([*arguments, "--model", "smp:Unet", *small, "--batch-size", "2"]) == 0
    segmenter = Segmenter.load(f"{tmp_path}/run/best.pt")
    assert segmenter.form == PictureFormat(5, dtype="uint16")
    assert segmenter(segmenter.prepare(segmenter.read(root / "img/p0.tif"))).shape[1] == 2
