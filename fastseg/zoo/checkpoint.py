"""Checkpoints: files that are never half written, and errors that say what does not fit.

A weights file is a dict ``{"format": "fastseg-weights-1", "state_dict": ..., "metadata": ...}``
that is enough to build its model: see ``save_model`` and ``load_model``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastseg._core.atomic import atomic_write
from fastseg.models import build_model
from fastseg.zoo import unpickler
from fastseg.zoo.fitting_options import hint
from fastseg.zoo.state_dicts import listed, misfits
from fastseg.zoo.unpickler import StandIn

WEIGHTS_FORMAT = "fastseg-weights-1"
REQUIRED_METADATA = ("model", "options", "classes")
"""Keys of a weights file's metadata, by which its model is built."""

OTHER_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS; 'git lfs pull' fetches the file itself",
    b"\x89HDF": "an HDF5 file, of Keras or TensorFlow",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"<": "a page of HTML or XML, which some downloads save in place of the file",
}
"""Kinds of files that are mistaken for checkpoints, by their first bytes."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit what it is loaded into."""


def save(contents: Any, path: str | Path) -> None:
    """Writes ``contents`` with ``torch.save``, atomically.

    Args:
        contents: an object that ``torch.load(weights_only=True)`` can read: tensors, numbers,
            strings, and lists, tuples and dicts of them.
        path: the file; its folder must exist.

    Raises:
        OSError: the file cannot be written, for example to a full disk. The old file stays.
    """
    with atomic_write(path) as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # torch's error hides the one that caused it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load(path: str | Path) -> Any:
    """Reads a file of ``save`` or ``torch.save`` on the CPU, without running code from it.

    Dense tensors, numbers, texts and the containers around them are read. Other objects that a
    trainer may have saved, such as an ``argparse.Namespace`` or a quantized tensor, become a
    ``fastseg.zoo.unpickler.StandIn`` that knows the name of its class and nothing more.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, corrupted, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}{' (a folder)' * path.is_dir()}")
    data = path.read_bytes()
    unreadable = f"{path} ({len(data)} bytes) is not a readable checkpoint:"
    try:
        problem = _other_kind(data)
        if problem is None:
            contents = torch.load(
                io.BytesIO(data),
                map_location="cpu",
                pickle_module=unpickler,
                weights_only=False,
                encoding="latin1",  # Python 2's texts in checkpoints are ASCII
            )
    except Exception as error:  # malformed bytes raise nearly anything inside torch.load
        reason = str(error).strip().split("\n")[0][:200] or "it ends too early"
        raise CheckpointError(
            f"{unreadable} truncated, corrupted or of another kind "
            f"({type(error).__name__}: {reason})"
        ) from error
    if problem is not None:
        raise CheckpointError(f"{unreadable} {problem}")
    if isinstance(contents, StandIn) and not contents:
        raise CheckpointError(
            f"{path} holds a {contents.name} as a whole, whose code is not run; "
            "save its state_dict() instead"
        )
    return contents


def _other_kind(data: bytes) -> str | None:
    """Returns the kind or the damage of a file that cannot be loaded; None if it may be good."""
    if not data:
        return "the file is empty"
    for start, kind in OTHER_KINDS.items():
        if data.lstrip().startswith(start):
            return f"it is {kind}"
    if not data.startswith(b"PK"):  # files before torch 1.6 are no archives
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if not any(name.endswith(".pkl") for name in archive.namelist()):
            return "it is an archive that torch.save did not write"
        damaged = archive.testzip()  # torch.load does not look at the checksums
    # This is torch.load's reader: in a crafted file, another one may find other names.
    if "constants.pkl" in torch._C.PyTorchFileReader(io.BytesIO(data)).get_all_records():
        return "it is a TorchScript program, which is not run; save the state_dict() of its model"
    return None if damaged is None else f"it is damaged: bad checksum of {damaged}"


def load_state_dict(
    module: nn.Module, state: Mapping[str, Tensor], source: str = "state_dict"
) -> None:
    """Loads every key of ``state`` into ``module``, or changes nothing.

    Args:
        module: the module to fill; tensors are converted to its dtypes and devices.
        state: tensors with the keys of ``module.state_dict()``; batch norms'
            ``num_batches_tracked`` may be absent.
        source: the name of ``state`` in an error.

    Raises:
        CheckpointError: something does not fit; the error lists all missing, unexpected and
            misshapen keys.
    """
    expected = module.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"{source} holds other things than tensors: {listed([str(key) for key in odd])}"
        )
    found = misfits(expected, state)
    if any(found):
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {found}")
    module.load_state_dict(state, strict=False)  # counters may be absent


def save_model(path: str | Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Writes the weights of a model in fp16, with the metadata to build and feed it.

    Parameters are stored in float16. Buffers keep their dtype: a running variance may lie outside
    float16's range.

    Args:
        path: the file.
        model: the model.
        metadata: a mapping with at least "model" (a name of ``list_models()``), "options" (a dict
            of the builder's keyword arguments) and "classes" (a list of names); for ``fastseg
            segment`` also "palette", "mean", "std" and "short_side" (pixels to which an image's
            short side is resized).

    Raises:
        ValueError: metadata lacks a key or has not a name for each of the model's classes, or a
            parameter does not fit float16.
        TypeError: metadata hold an object that a file does not bring back, such as an array.
    """
    _check_metadata(metadata, ValueError, "metadata")
    _check_plain(metadata, "metadata")
    classes = getattr(model, "num_classes", len(metadata["classes"]))
    if len(metadata["classes"]) != classes:
        raise ValueError(
            f"metadata['classes'] must have a name for each of the model's {classes} classes, "
            f"got {len(metadata['classes'])}"
        )
    state = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        state[name] = parameter.detach().to(torch.float16)
        if not state[name].isfinite().all():
            raise ValueError(f"parameter {name} has values that float16 cannot hold")
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    contents = {"format": WEIGHTS_FORMAT, "state_dict": state, "metadata": dict(metadata)}
    save(contents, path)


def load_model(
    path: str | Path, *, backend: str = "fastseg", **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model of a weights file.

    Args:
        path: a file that ``save_model`` wrote.
        backend: "fastseg" or "torch", whose ops run the layers.
        **options: arguments of the builder, which win over the file's.

    Returns:
        The model in evaluation mode, float32, on the CPU, and the file's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a weights file, or its weights do not fit its model.
        TypeError: the model has no such option.
        ValueError: an option out of range.
    """
    contents = load(path)
    if not isinstance(contents, dict) or contents.get("format") != WEIGHTS_FORMAT:
        raise CheckpointError(f"{path} is not a fastseg weights file (no {WEIGHTS_FORMAT!r} mark)")
    metadata, state = (contents.get(key) for key in ("metadata", "state_dict"))
    return build_saved(path, state, metadata, backend=backend, **options), metadata


def build_saved(
    path: str | Path, state: Any, metadata: Any, *, backend: str = "fastseg", **options: Any
) -> nn.Module:
    """Builds the model from the contents of a weights file.

    Args:
        path: the file's name in an error.
        state: the file's state_dict.
        metadata: the file's metadata.
        backend: "fastseg" or "torch", whose ops run the layers.
        **options: arguments of the builder, which win over the file's.

    Raises:
        CheckpointError: the state_dict or the metadata are no dicts, or do not fit each other or
            the options; the error names options that fit.
        TypeError: the model has no such option.
        ValueError: an option out of range.
    """
    if not isinstance(metadata, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{path} lacks a dict 'metadata' or a dict 'state_dict'")
    _check_metadata(metadata, CheckpointError, f"metadata of {path}")
    try:
        chosen = {**_saved_options(metadata), "backend": backend, **options}
        model = build_model(metadata["model"], **chosen)
    except (TypeError, ValueError) as error:
        if _describes_a_model(metadata):
            raise  # it is the caller's options that are wrong, not the file's
        raise CheckpointError(f"{path} does not describe a model: {error}") from error
    try:
        load_state_dict(model, state, source=str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint(metadata['model'], chosen, state)}") from None
    return model.eval()


def _saved_options(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {**metadata["options"], "num_classes": len(metadata["classes"])}


def _describes_a_model(metadata: Mapping[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            build_model(metadata["model"], **_saved_options(metadata))
    except (TypeError, ValueError):
        return False
    return True


def _check_metadata(metadata: Mapping[str, Any], error: type[Exception], name: str) -> None:
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise error(f"{name} lacks {', '.join(missing)}; it has {', '.join(metadata) or 'nothing'}")


def _check_plain(value: Any, name: str) -> None:
    """Raises a TypeError for an object that :func:`load` would leave aside, by its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_plain(inner, f"{name}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _check_plain(inner, f"{name}[{i}]")
    elif not (value is None or isinstance(value, (str, bool, int, float, np.number, Tensor))):
        raise TypeError(
            f"{name} must be of texts, numbers, tensors, lists and dicts, which files bring back, "
            f"got a {type(value).__name__}"
        )
