"""The command ``fastseg export``: a file, its card, the comparison, and what cannot be."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys

import pytest
import torch

from fastseg.cli import main
from fastseg.export import Comparison
from fastseg.models import build_model
from fastseg.zoo.checkpoint import save_model

CLASSES = ["sky", "road", "tree"]
OPTIONS = {"width": 4, "kernel_size": 3}


def save(path, **options):
    torch.manual_seed(0)
    options = {**OPTIONS, **options}
    metadata = {"model": "segnet_basic", "options": options, "classes": CLASSES}
    metadata |= {"palette": [[0, 0, 255], [128, 64, 128], [0, 128, 0]], "short_side": 32}
    metadata |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    save_model(path, build_model("segnet_basic", len(CLASSES), **options), metadata)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save(tmp_path_factory.mktemp("weights") / "small.pt")


def test_a_file_and_its_card(tmp_path, weights, capsys):
    path = tmp_path / "model.pt2"
    arguments = ["--weights", str(weights), "-o", str(path), "--normalise", "--classes"]
    assert main(["export", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"segnet_basic of small.pt written to {path}, its card to {path}.json" in out
    assert f"torch {torch.__version__} on 1x32x32x3: agrees, every pixel has the same class" in out
    card = json.loads((tmp_path / "model.pt2.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["weights"] == {"file": "small.pt", "sha256": digest}
    assert card["classes"] == CLASSES
    assert card["outputs"][0]["shape"] == [1, 32, 32]
    pictures = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    assert torch.export.load(path).module()(pictures).dtype == torch.uint8


def test_a_checkpoint_of_another_project(tmp_path, capsys):
    """Its auxiliary head is not part of the file's output."""
    torch.manual_seed(0)
    model = build_model("fcn", 21, backbone="resnet50", output_stride=8, aux=True)
    torch.save(model.state_dict(), tmp_path / "fcn_resnet50.pth")
    arguments = ["--weights", str(tmp_path / "fcn_resnet50.pth"), "--size", "32", "40"]
    assert main(["export", *arguments, "-o", str(tmp_path / "model.pt2")]) == 0
    assert "agrees" in capsys.readouterr().out
    card = json.loads((tmp_path / "model.pt2.json").read_text())
    assert card["model"] == "fcn"
    assert card["outputs"][0]["shape"] == [1, 21, 32, 40]


def test_a_dense_crf_is_left_out_on_request(tmp_path, capsys):
    weights = save(tmp_path / "crf.pt", crf="layer")
    arguments = ["export", "--weights", str(weights), "-o", str(tmp_path / "model.pt2")]
    assert main(arguments) == 2
    assert "--without-crf" in capsys.readouterr().err
    assert main([*arguments, "--without-crf"]) == 0


def test_a_disagreement_is_an_error(tmp_path, weights, capsys, monkeypatch):
    wrong = Comparison("torch 2", [(1, 3, 32, 32)], 0.5, problem="disagrees")
    monkeypatch.setattr("fastseg.export.segmenter.compare", lambda *_: wrong)
    path = tmp_path / "model.pt2"
    assert main(["export", "--weights", str(weights), "-o", str(path)]) == 1
    out, err = capsys.readouterr()
    assert err == f"fastseg: {path}: torch 2 on 1x3x32x32: disagrees\n"
    assert "agrees" not in out
    assert json.loads((tmp_path / "model.pt2.json").read_text())["comparison"]["problem"]


def test_a_file_that_its_runtime_cannot_run_is_an_error(tmp_path, weights, capsys, monkeypatch):
    def refuse(path):
        raise RuntimeError("bad file\nmore")

    monkeypatch.setattr("torch.export.load", refuse)
    arguments = ["export", "--weights", str(weights), "-o", str(tmp_path / "model.pt2")]
    assert main(arguments) == 1
    assert "cannot run the file: bad file\n" in capsys.readouterr().err


def test_a_missing_runtime_is_said(tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr("fastseg.export.compare.is_installed", lambda package: False)
    assert main(["export", "--weights", str(weights), "-o", str(tmp_path / "model.pt2")]) == 0
    assert "not compared: torch is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("-o model.bin", "model.bin: an exported file ends in one of .onnx, .pt2, .xml"),
        ("-o model.onnx --format aoti", "a file of the format aoti ends in .pt2"),
        ("-o none/model.pt2", "there is no folder none"),
        ("-o model.pt2 --size 0 32", "size must be two sides of at least 2 pixels, got (0, 32)"),
        ("-o model.pt2 --size 8 8", "size (8, 8): x must be at least 16x16 pixels"),
        ("-o model.pt2 --opset 9", "opset must be at least 18, got 9"),
        ("-o model.pt2 --threads -1", "--threads -1: at least 0"),
        ("-o model.pt2 --weights none.pt", "no checkpoint at none.pt"),
        ("-o model.pt2 --option foo=1", "unexpected keyword argument 'foo'"),
        ("-o model.pt2 --option backend=fastseg", "which other runtimes do not have"),
    ],
)
def test_what_cannot_be_used(tmp_path, weights, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--weights", str(weights), *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("model.onnx", "onnx", "pip install onnx onnxscript"),
        ("model.onnx", "onnxscript", "pip install onnx onnxscript"),
        ("model.xml", "openvino", "pip install openvino"),
    ],
)
def test_missing_packages_are_named_first(
    tmp_path, weights, capsys, monkeypatch, name, package, command
):
    if package == "onnxscript" and importlib.util.find_spec("onnx") is None:
        pytest.skip("onnx is not installed")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", "--weights", str(weights), "-o", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert f"needs {package}, which cannot be imported" in err
    assert err.endswith(f"{command}\n")
    assert not list(tmp_path.iterdir())
