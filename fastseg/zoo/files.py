"""Reading of checkpoints of any project: the state_dict in a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastseg.zoo import checkpoint
from fastseg.zoo.checkpoint import WEIGHTS_FORMAT, CheckpointError
from fastseg.zoo.state_dicts import listed
from fastseg.zoo.unpickler import StandIn

WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")
"""Names under which trainers save a state_dict beside other things."""

PREFIXES = ("module.", "model.", "net.")
"""Prefixes of a network inside of another module: DistributedDataParallel's, AveragedModel's, and
those that Lightning's modules usually have."""

INSERTED = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Pattern of what torch.compile, FSDP and checkpointing put into keys, of parts too."""

COUNTER = "n_averaged"
"""Key of the number of steps that torch.optim.swa_utils.AveragedModel keeps beside a network."""

MOST_WRAPPERS = 8
"""Largest number of nested wrappers: a file can hold a dict that holds itself."""

TENSOR_CLASS = re.compile(r"torch\._utils\._rebuild_\w+|.*Tensor\b.*")
"""Pattern of the names of tensor classes, and of the functions that rebuild tensors."""

KINDS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_qtensor": "quantized",
    "_rebuild_meta_tensor_no_storage": "without values, of the device meta",
    "_rebuild_nested_tensor": "nested",
    "DTensor": "sharded over processes (DTensor); gather them with full_tensor() first",
    "ShardedTensor": "sharded over processes (ShardedTensor); gather them first",
}
"""Descriptions of tensors that are not dense, by the names of their classes or functions."""


class Contents(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        state: the state_dict.
        metadata: the metadata of one of fastseg's weights files, or None.
    """

    state: dict[str, Tensor]
    metadata: dict[str, Any] | None


def read(path: str | Path) -> Contents:
    """Reads a checkpoint on the CPU, without running code from it.

    Args:
        path: a safetensors file, or one that torch.save wrote: a state_dict, by itself or under
            "state_dict", "model_state", "model_state_dict" or "model", or a fastseg weights file.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a safetensors file, and the safetensors package is not installed.
        CheckpointError: the file is damaged, or has no state_dict of plain tensors.
    """
    path = Path(path)
    if _is_safetensors(path):
        return Contents(_without_prefixes(_safetensors(path)), None)
    found, metadata = checkpoint.load(path), None
    if isinstance(found, Mapping) and found.get("format") == WEIGHTS_FORMAT:
        metadata = found["metadata"] if isinstance(found.get("metadata"), dict) else None
    if not isinstance(found, Mapping):
        found = {}
    for _ in range(MOST_WRAPPERS):
        wrapped = [found[k] for k in WRAPPERS if isinstance(found.get(k), Mapping) and found[k]]
        if not wrapped:
            break
        found = wrapped[0]
    _check_plain(found, path)
    # A state_dict may hold other things beside tensors, such as milesial's mask_values.
    state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if state:
        return Contents(_without_prefixes(state), metadata)
    whole = [f"a whole {v.name}" for k in WRAPPERS if isinstance(v := found.get(k), StandIn)]
    holds = f"; it holds {listed([str(key) for key in found])}" if found else ""
    raise CheckpointError(
        f"{path} has no state_dict, neither by itself nor under {', '.join(WRAPPERS)}{holds}"
        + "".join(f"; {model}, whose code is not run: save its state_dict()" for model in whole)
    )


def _check_plain(found: Mapping[Any, Any], path: Path) -> None:
    """Raises a CheckpointError if some of the weights are no dense tensors of numbers."""
    others: dict[str, list[str]] = {}
    for key, value in found.items():
        if isinstance(value, StandIn) and TENSOR_CLASS.fullmatch(value.name):
            kind = KINDS.get(value.name.rpartition(".")[2], f"a {value.name}")
            others.setdefault(kind, []).append(str(key))
    if others:
        kinds = "; ".join(f"{kind}: {listed(keys)}" for kind, keys in others.items())
        raise CheckpointError(f"{path} holds weights that are not dense tensors, {kinds}")


def _is_safetensors(path: Path) -> bool:
    """Whether a file's name, or its first bytes (a length and a JSON header), are safetensors'."""
    if path.suffix == ".safetensors":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(10)[8:] == b'{"'


def _safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}{' (a folder)' * path.is_dir()}")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise ImportError(
            f"{path} needs the safetensors package: pip install safetensors"
        ) from error
    try:
        return load(path.read_bytes())
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError is an unknown dtype
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {type(error).__name__}: {error}"
        ) from error


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state_dict with the network's own keys, where most of them have a known prefix.

    What lies beside the network, such as the weights of a loss, stays and is found unexpected.
    """
    state = _renamed(state, lambda key: INSERTED.sub("", key))
    while prefix := next((p for p in PREFIXES if _is_before_most(p, state)), None):
        if prefix == "module.":
            state.pop(COUNTER, None)
        shorter = _renamed(state, lambda key, prefix=prefix: key.removeprefix(prefix))
        if shorter is state:
            break
        state = shorter
    return state


def _is_before_most(prefix: str, keys: Mapping[str, Tensor]) -> bool:
    return 2 * sum(key.startswith(prefix) for key in keys) > len(keys)


def _renamed(state: dict[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Returns the state_dict with other keys, or itself if two of them would be one."""
    renamed = {rename(key): tensor for key, tensor in state.items()}
    return renamed if len(renamed) == len(state) else state
