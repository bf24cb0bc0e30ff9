"""Reading checkpoints of any project: a state_dict, out of what is wrapped around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastseg import checkpoint
from fastseg.checkpoint import WEIGHTS_FORMAT, CheckpointError

# Under these names trainers save a state_dict beside other things.
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")
# What DistributedDataParallel and torch.compile put before every key.
PREFIXES = ("module.", "_orig_mod.")


class Contents(NamedTuple):
    """Of a checkpoint."""

    state: dict[str, Tensor]
    metadata: dict[str, Any] | None  # of fastseg's weights files


def read(path: str | Path) -> Contents:
    """Read a checkpoint on the CPU, without running code from it.

    Args:
        path: a .safetensors file, or what torch.save wrote: a state_dict, one under "state_dict",
            "model_state", "model_state_dict" or "model", or a fastseg weights file.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a .safetensors file, and the safetensors package is not installed.
        CheckpointError: the file is damaged or has no state_dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return Contents(_without_prefixes(_safetensors(path)), None)
    found, metadata = checkpoint.load(path), None
    if isinstance(found, Mapping) and found.get("format") == WEIGHTS_FORMAT:
        metadata = found["metadata"] if isinstance(found.get("metadata"), dict) else None
    while isinstance(found, Mapping):
        state = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
        inner = next((found[k] for k in WRAPPERS if isinstance(found.get(k), Mapping)), None)
        # Beside its tensors a state_dict may hold other things, such as milesial's mask_values.
        if state and inner is None:
            return Contents(_without_prefixes(state), metadata)
        found = inner
    raise CheckpointError(
        f"{path} has no state_dict, neither by itself nor under {', '.join(WRAPPERS)}"
    )


def _safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"{path} needs the safetensors package: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): t for key, t in state.items()}
    return state
