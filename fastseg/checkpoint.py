"""Checkpoints that are never half written, and errors that say what does not fit.

A weights file is a dict ``{"format": "fastseg-weights-1", "state_dict": ..., "metadata": ...}``
that is enough to build its model: see ``save_model`` and ``load_model``.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastseg._state_dicts import listed, misfits
from fastseg.atomic import atomic_write
from fastseg.models import build_model

WEIGHTS_FORMAT = "fastseg-weights-1"
REQUIRED_METADATA = ("model", "options", "classes")
# What a NumPy number is pickled as, such as a best score beside the weights, by NumPy 1 or 2.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)),
]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or does not fit what it is loaded into."""


def save(contents: Any, path: str | Path) -> None:
    """Write ``contents`` with ``torch.save``, atomically.

    Args:
        contents: what ``torch.load(weights_only=True)`` can read: tensors, numbers, strings,
            lists, tuples and dicts of them.
        path: the file; its folder must exist.
    """
    with atomic_write(path) as file:
        torch.save(contents, file)


def load(path: str | Path) -> Any:
    """Read what ``save`` or ``torch.save`` wrote, on the CPU, without running code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated, corrupted, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    data = path.read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):  # before torch 1.6 files were no archives
            # torch.load does not look at the archive's checksums.
            damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()
            if damaged is not None:
                raise ValueError(f"bad checksum of {damaged}")
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # malformed bytes raise nearly anything inside torch.load
        raise CheckpointError(
            f"{path} ({len(data)} bytes) is not a readable checkpoint: truncated, corrupted or of "
            f"another kind ({type(error).__name__}: {_reason(error)})"
        ) from error


def load_state_dict(
    module: nn.Module, state: Mapping[str, Tensor], source: str = "state_dict"
) -> None:
    """Load ``state`` into ``module``, every key of it, or change nothing.

    Args:
        module: the module to fill; tensors are converted to its dtypes and devices.
        state: what ``module.state_dict()`` has; batch norms' ``num_batches_tracked`` may be absent.
        source: what to call ``state`` in an error.

    Raises:
        CheckpointError: with all missing, unexpected and misshapen keys in one message.
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
    module.load_state_dict(state, strict=False)  # without batch norms' counters, if they are absent


def save_model(path: str | Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write the weights of a model in fp16, with what is needed to build and feed it.

    Parameters are stored in float16. Buffers keep their dtype: a running variance may lie outside
    float16's range.

    Args:
        path: the file.
        model: the model.
        metadata: at least "model" (a name of ``list_models()``), "options" (dict of the builder's
            keyword arguments) and "classes" (list of class names); for ``fastseg segment`` also
            "palette", "mean", "std" and "short_side" (pixels that the short side of an image is
            resized to).

    Raises:
        ValueError: metadata lacks a key, or a parameter does not fit float16.
    """
    _check_metadata(metadata, ValueError, "metadata")
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
    """Build the model of a weights file.

    Args:
        path: a file that ``save_model`` wrote.
        backend: "fastseg" or "torch".
        **options: of the builder, which win over the file's.

    Returns:
        The model in evaluation mode, float32, on the CPU, and the file's metadata.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a weights file, or its weights do not fit its model.
    """
    contents = load(path)
    if not isinstance(contents, dict) or contents.get("format") != WEIGHTS_FORMAT:
        raise CheckpointError(f"{path} is not a fastseg weights file (no {WEIGHTS_FORMAT!r} mark)")
    metadata, state = (contents.get(key) for key in ("metadata", "state_dict"))
    return build_saved(path, state, metadata, backend=backend, **options), metadata


def build_saved(
    path: str | Path, state: Any, metadata: Any, *, backend: str = "fastseg", **options: Any
) -> nn.Module:
    """Build the model of what was read from a weights file.

    Args:
        path: the file, for errors.
        state: its state_dict.
        metadata: its metadata.
        backend: as in :func:`load_model`.
        **options: likewise.

    Raises:
        CheckpointError: these are none, or do not fit each other.
    """
    if not isinstance(metadata, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{path} lacks a dict 'metadata' or a dict 'state_dict'")
    _check_metadata(metadata, CheckpointError, f"metadata of {path}")
    try:
        classes, options = len(metadata["classes"]), {**metadata["options"], **options}
        model = build_model(metadata["model"], classes, backend=backend, **options)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a model: {error}") from error
    load_state_dict(model, state, source=str(path))
    return model.eval()


def _check_metadata(metadata: Mapping[str, Any], error: type[Exception], name: str) -> None:
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise error(f"{name} lacks {', '.join(missing)}; it has {', '.join(metadata) or 'nothing'}")


def _reason(error: Exception) -> str:
    """The first line, and the class of an object that torch.load would have to run code for."""
    reason = str(error).strip().split("\n")[0][:200]
    if match := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
        reason += f"; it holds a {match[1]}, not only tensors, numbers and texts"
    return reason
