"""Checkpoints: written whole or not at all, and read with errors that say what is wrong."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg.models import build_model, segnet_basic
from fastseg.zoo import checkpoint
from fastseg.zoo.checkpoint import CheckpointError

METADATA = {
    "model": "segnet_basic",
    "options": {"width": 4, "kernel_size": 3},
    "classes": ["a", "b", "c"],
}


def small_model():
    torch.manual_seed(0)
    return segnet_basic(3, width=4, kernel_size=3, backend="torch")


def test_save_and_load_round_trip(tmp_path):
    path = tmp_path / "state.pt"
    checkpoint.save({"x": torch.arange(3), "n": 1, "names": ["a"]}, path)
    read = checkpoint.load(path)
    assert read["x"].tolist() == [0, 1, 2]
    assert (read["n"], read["names"]) == (1, ["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_permissions_follow_the_umask(tmp_path):
    path = tmp_path / "state.pt"
    previous = os.umask(0o027)
    try:
        checkpoint.save(1, path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["torch.save", "os.fsync", "os.replace"])
def test_a_failure_while_saving_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "state.pt"
    checkpoint.save({"n": 1}, path)

    def fail(*arguments):
        if step == "torch.save":
            arguments[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save({"n": 2}, path)
    monkeypatch.undo()
    assert checkpoint.load(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.pt"):
        checkpoint.load(tmp_path / "nothing.pt")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_reported(tmp_path, kept):
    path = tmp_path / "state.pt"
    checkpoint.save({"x": torch.randn(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"state.pt \(\d+ bytes\) is not a readable"):
        checkpoint.load(path)


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_a_flipped_bit_is_reported(tmp_path, position):
    path = tmp_path / "state.pt"
    checkpoint.save({"x": torch.randn(1000)}, path)
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="bad checksum"):
        checkpoint.load(path)


@pytest.mark.parametrize("data", [b"not a checkpoint", b"\x80\x02garbage", bytes(1000)])
def test_another_kind_of_file_is_reported(tmp_path, data):
    path = tmp_path / "state.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        checkpoint.load(path)


def test_all_keys_that_do_not_fit_are_in_one_message():
    model = small_model()
    before = model.classifier.weight.clone()
    state = model.state_dict()
    del state["classifier.bias"]
    state["head.weight"] = torch.zeros(1)
    state["classifier.weight"] = torch.zeros(7, 4, 1, 1)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_state_dict(model, state, source="file.pt")
    message = str(error.value)
    assert message.startswith("file.pt does not fit SegNet: ")
    assert "1 missing: classifier.bias" in message
    assert "1 unexpected: head.weight" in message
    assert "1 misshapen: classifier.weight (7, 4, 1, 1) instead of (3, 4, 1, 1)" in message
    assert torch.equal(model.classifier.weight, before)


def test_a_model_comes_back_from_its_file_alone(tmp_path):
    path = tmp_path / "weights.pt"
    model = small_model()
    x = torch.randn(1, 3, 33, 47)
    model(x)  # moves the running statistics
    checkpoint.save_model(path, model, METADATA)
    loaded, metadata = checkpoint.load_model(path, backend="torch")
    assert metadata == METADATA
    assert not loaded.training
    assert loaded.classifier.weight.dtype == torch.float32
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=0.02, atol=0.02)


def test_parameters_are_stored_in_half_precision_and_statistics_are_not(tmp_path):
    path = tmp_path / "weights.pt"
    model = small_model()
    model.encoder[0].pool.running_var.fill_(1e6)  # beyond float16
    checkpoint.save_model(path, model, METADATA)
    state = checkpoint.load(path)["state_dict"]
    assert {state[name].dtype for name, _ in model.named_parameters()} == {torch.float16}
    assert checkpoint.load_model(path, backend="torch")[0].encoder[0].pool.running_var[0] == 1e6


def test_a_parameter_beyond_half_precision_is_refused(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.classifier.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"classifier\.bias has values that float16"):
        checkpoint.save_model(tmp_path / "weights.pt", model, METADATA)


def test_metadata_must_be_enough_to_build_the_model(tmp_path):
    with pytest.raises(ValueError, match="metadata lacks options, classes; it has model"):
        checkpoint.save_model(tmp_path / "weights.pt", small_model(), {"model": "segnet_basic"})


def test_every_class_of_the_model_must_have_a_name(tmp_path):
    model = build_model("unet", 3, width=4)
    metadata = {"model": "unet", "options": {"width": 4}, "classes": ["a", "b"]}
    with pytest.raises(ValueError, match=r"for each of the model's 3 classes, got 2"):
        checkpoint.save_model(tmp_path / "model.pt", model, metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"mean": np.zeros(3)}, r"metadata\['mean'\] must be of texts.*, got a ndarray"),
        ({"classes": np.array(["a", "b"])}, r"metadata\['classes'\] must be .*, got a ndarray"),
        ({"options": {"width": 4, "x": [Path()]}}, r"metadata\['options'\]\['x'\]\[0\] must be"),
    ],
)
def test_metadata_that_would_not_come_back_are_refused(other, message, tmp_path):
    metadata = {"model": "unet", "options": {"width": 4}, "classes": ["a", "b"], **other}
    with pytest.raises(TypeError, match=message):
        checkpoint.save_model(tmp_path / "model.pt", build_model("unet", 2, width=4), metadata)
    assert not list(tmp_path.iterdir())


def test_plain_metadata_come_back(tmp_path):
    """NumPy's numbers do so too, as options that were computed with it."""
    path, model = tmp_path / "model.pt", build_model("unet", 2, width=4)
    metadata = {
        "model": "unet",
        "options": {"width": np.int64(4)},
        "classes": ("a", "b"),
        "mean": torch.ones(3),
        "std": [np.float32(0.5), 0.25, 1],
        "crop": None,
        "own": True,
    }
    checkpoint.save_model(path, model, metadata)
    loaded = checkpoint.load_model(path)[1]
    torch.testing.assert_close(loaded.pop("mean"), metadata.pop("mean"))
    assert loaded == metadata


def test_a_checkpoint_that_is_no_weights_file_is_reported(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"model": {}, "epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt is not a fastseg weights file"):
        checkpoint.load_model(path)


def test_weights_of_another_model_are_reported(tmp_path):
    path = tmp_path / "weights.pt"
    metadata = {**METADATA, "classes": ["a", "b"]}
    contents = {"state_dict": small_model().state_dict(), "metadata": metadata}
    checkpoint.save({"format": checkpoint.WEIGHTS_FORMAT, **contents}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt does not fit SegNet: 2 misshapen"):
        checkpoint.load_model(path, backend="torch")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"state_dict": {}}, "lacks a dict 'metadata'"),
        ({"state_dict": [], "metadata": METADATA}, "or a dict 'state_dict'"),
        ({"state_dict": {}, "metadata": {**METADATA, "options": {"depth": 9}}}, "depth"),
        ({"state_dict": {}, "metadata": {**METADATA, "classes": 3}}, "does not describe a model"),
        ({"state_dict": {"x": "y"}, "metadata": METADATA}, "other things than tensors: x"),
    ],
)
def test_weights_made_by_hand_are_reported(tmp_path, contents, message):
    path = tmp_path / "weights.pt"
    checkpoint.save({"format": checkpoint.WEIGHTS_FORMAT, **contents}, path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_model(path)
