"""Filling of a module from a converted state_dict, whole or not at all, with a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastseg.zoo.checkpoint import CheckpointError
from fastseg.zoo.source import Converted
from fastseg.zoo.state_dicts import Misfits, listed, misfits


@dataclass(frozen=True)
class LoadReport:
    """A report of what a checkpoint was taken for, and which of its tensors were loaded.

    Args:
        source: the checkpoint's source, a name of ``fastseg.zoo.SOURCES`` or "fastseg".
        model: the builder of the checkpoint's network; None if it does not tell.
        options: the builder's options under which the outputs are the source's. Fitting keys and
            shapes do not make sure of them.
        loaded: keys of the model that were filled.
        missing: keys of the model that the checkpoint lacks.
        unexpected: keys of the checkpoint, by its own names, that the model has no place for.
        misshapen: keys of the model whose tensor has another shape in the checkpoint.
        ignored: keys of the checkpoint that :func:`fastseg.load_backbone` leaves aside.
    """

    source: str
    model: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns a few lines to print."""
        lines = [
            f"{self.source}{f' {self.model}' if self.model else ''}: {len(self.loaded)} loaded"
        ]
        for kind in ("missing", "unexpected", "misshapen", "ignored"):
            keys = getattr(self, kind)
            if keys:
                lines.append(f"{len(keys)} {kind}: {listed(keys)}")
        return "\n".join(lines)


def fill(
    module: nn.Module,
    converted: Converted,
    name: str,
    *,
    strict: bool,
    expected: Mapping[str, Tensor] | None = None,
    **report: Any,
) -> LoadReport:
    """Copies a state_dict into a module, in the module's dtypes and on its devices.

    Args:
        module: the module to fill.
        converted: the state_dict, with the module's keys.
        name: the state_dict's name in an error.
        strict: whether everything must fit; if not, what fits is copied.
        expected: the part of the module's state_dict that is to be filled; default: all.
        **report: further arguments of LoadReport.

    Raises:
        CheckpointError: with strict, something does not fit. The module is unchanged.
    """
    expected = module.state_dict() if expected is None else expected
    state, names = converted.state, converted.names
    missing, unexpected, misshapen = misfits(expected, state)
    found = Misfits(
        missing,
        (*converted.unknown, *(names[key] for key in unexpected)),
        {
            key: text if names[key] == key else f"{text} (in the file {names[key]})"
            for key, text in misshapen.items()
        },
    )
    if strict and any(found):
        raise CheckpointError(f"{name} does not fit {type(module).__name__}: {found}")
    fitting = {key: t for key, t in state.items() if key in expected and key not in misshapen}
    module.load_state_dict(fitting, strict=False)
    return LoadReport(
        loaded=tuple(fitting),
        missing=missing,
        unexpected=found.unexpected,
        misshapen=tuple(misshapen),
        **report,
    )
