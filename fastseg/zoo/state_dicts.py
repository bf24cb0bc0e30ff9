"""Misfits of a state_dict and a module, and their description."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

MOST = 12
"""Largest number of keys, or groups of keys, that a message lists of a kind."""

OPTIONAL = ".num_batches_tracked"
"""Suffix of keys that may be absent: batch norm counts its steps, which evaluation never reads."""


class Misfits(NamedTuple):
    """Keys that do not fit, of each kind; misshapen ones with what both sides have."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: dict[str, str]

    def __str__(self) -> str:
        """Returns a text such as ``2 missing: a.weight, a.bias; 1 unexpected: b.weight``."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected}
        found = [f"{len(keys)} {kind}: {listed(keys)}" for kind, keys in kinds.items() if keys]
        if self.misshapen:
            few = len(self.misshapen) <= MOST
            keys = ", ".join(self.misshapen.values()) if few else listed(self.misshapen)
            found.append(f"{len(self.misshapen)} misshapen: {keys}")
        return "; ".join(found)


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Misfits:
    """Returns the misfits of a state_dict and a module's own; counters may be absent."""
    return Misfits(
        tuple(key for key in expected if key not in state and not key.endswith(OPTIONAL)),
        tuple(str(key) for key in state if key not in expected),
        {
            key: _misshapen(key, state[key], tensor)
            for key, tensor in expected.items()
            if key in state
            and (state[key].shape != tensor.shape or _no_numbers(state[key], tensor))
        },
    )


def _no_numbers(found: Tensor, expected: Tensor) -> bool:
    """Whether real numbers are expected and integers found, such as quantized weights' codes."""
    return expected.is_floating_point() and not found.is_floating_point()


def _misshapen(key: str, found: Tensor, expected: Tensor) -> str:
    """Returns ``conv.weight (4,) instead of (8,)``, with the dtypes where these do not fit."""
    shapes = [f"{tuple(t.shape)}" for t in (found, expected)]
    if _no_numbers(found, expected):
        shapes = [f"{s} of {t.dtype}" for s, t in zip(shapes, (found, expected), strict=True)]
    return f"{key} {shapes[0]} instead of {shapes[1]}"


def listed(keys: Collection[str]) -> str:
    """Lists all keys, or many by their modules: ``classifier.0.convs.1.* (6 keys)``."""
    groups: dict[str, list[str]] = {}
    for dropped in range(1 + max((key.count(".") for key in keys), default=0)):
        groups = {}
        for key in keys:
            groups.setdefault(key.rsplit(".", dropped)[0], []).append(key)
        if len(groups) <= MOST:
            break
    return ", ".join(
        members[0] if len(members) == 1 else f"{group}.* ({len(members)} keys)"
        for group, members in groups.items()
    )
