"""Files of checkpoints: what trainers wrap around weights, safetensors, and files without any."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

import fastseg
from fastseg.zoo import checkpoint, files
from fastseg.zoo.checkpoint import CheckpointError


def wrappers():
    return {
        "plain": lambda s: s,
        "state_dict": lambda s: {"state_dict": s, "epoch": 3},
        "VainF's": lambda s: {"model_state": s, "best_score": np.float64(0.5), "cur_itrs": 3},
        "model, twice": lambda s: {"model": {"state_dict": s}},
        "DDP": lambda s: {"model_state_dict": {f"module.{k}": t for k, t in s.items()}},
        "compiled": lambda s: {f"module._orig_mod.{k}": t for k, t in s.items()},
        "compiled DDP": lambda s: {f"_orig_mod.module.{k}": t for k, t in s.items()},
        "compiled parts": lambda s: {k.replace(".", "._orig_mod.", 1): t for k, t in s.items()},
        "checkpointed parts": lambda s: {
            k.replace(".", "._checkpoint_wrapped_module.", 1): t for k, t in s.items()
        },
        "FSDP": lambda s: {f"_fsdp_wrapped_module.{k}": t for k, t in s.items()},
        "averaged": lambda s: {
            "n_averaged": torch.tensor(7),
            **{f"module.{k}": t for k, t in s.items()},
        },
        "Lightning": lambda s: {
            "state_dict": {f"model.{k}": t for k, t in s.items()},
            "pytorch-lightning_version": "2.5.0",
        },
        "Lightning, net": lambda s: {"state_dict": {f"net.module.{k}": t for k, t in s.items()}},
        "milesial's": lambda s: {**s, "mask_values": [0, 1]},
    }


@pytest.mark.parametrize("name", wrappers())
@pytest.mark.parametrize("old", [False, True], ids=["archive", "before torch 1.6"])
def test_files(name, old, original, tmp_path):
    theirs, ours = original
    path = tmp_path / "checkpoint.pth"
    state = wrappers()[name](theirs.state_dict())
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    report = fastseg.load_checkpoint(ours, path)
    assert report.source == "milesial"
    assert torch.equal(ours.down[0].conv1[0].weight, theirs.inc.double_conv[0].weight)


def test_averages_are_those_of_torch(original, tmp_path):
    theirs, ours = original
    path = tmp_path / "checkpoint.pth"
    torch.save(torch.optim.swa_utils.AveragedModel(theirs).state_dict(), path)
    assert fastseg.load_checkpoint(ours, path).source == "milesial"


def test_what_lies_beside_a_network_is_named_alone(original, tmp_path):
    """Lightning keeps the buffers of a loss among the weights."""
    theirs, ours = original
    path = tmp_path / "checkpoint.ckpt"
    state = {f"model.{k}": t for k, t in theirs.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(5)}}, path)
    with pytest.raises(CheckpointError, match=r"does not fit UNet: 1 unexpected: loss\.weight$"):
        fastseg.load_checkpoint(ours, path)
    report = fastseg.load_checkpoint(ours, path, strict=False)
    assert (report.missing, report.unexpected) == ((), ("loss.weight",))


def test_prefixes_stay_where_keys_would_be_one(tmp_path):
    path = tmp_path / "checkpoint.pth"
    names = ("module.a", "module.b", "a")
    torch.save({name: torch.zeros(1) for name in names}, path)
    assert tuple(files.read(path).state) == names


def test_numbers_of_numpy_1_are_read(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"score": np.float64(0.25)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert checkpoint.load(path)["score"] == 0.25


def test_safetensors(original, tmp_path):
    if importlib.util.find_spec("safetensors") is None:
        pytest.skip("needs safetensors")
    from safetensors.torch import save_file

    theirs, ours = original
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    assert fastseg.load_checkpoint(ours, path).source == "milesial"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        fastseg.load_checkpoint(ours, path)


def test_safetensors_says_what_to_install(original, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*model\.safetensors"):
        fastseg.load_checkpoint(original[1], path)
    path.write_bytes(b"")
    with pytest.raises(ImportError, match="pip install safetensors"):
        fastseg.load_checkpoint(original[1], path)


@pytest.mark.parametrize(
    ("contents", "holds"),
    [
        (3, "model$"),
        ({}, "model$"),
        ({"epoch": 3, "model_ema": {}}, "model; it holds epoch, model_ema$"),
        ({"state_dict": {"a": 1}}, "model; it holds a$"),
    ],
)
def test_a_file_without_state_dict(contents, holds, original, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(contents, path)
    message = f"has no state_dict, neither by itself nor under .*, {holds}"
    with pytest.raises(CheckpointError, match=message):
        fastseg.load_checkpoint(original[1], path)
