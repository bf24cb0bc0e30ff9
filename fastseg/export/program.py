"""The exported program of torch, from which all formats are written."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from sympy import Integer, false
from torch import Tensor
from torch.export import Dim, ExportedProgram

from fastseg.export.deployed import Deployed
from fastseg.export.errors import ExportError, first_line, quiet

INPUT = "image"
"""Name of the only input."""

OURS = "fastseg::"
"""Beginning of the names of fastseg's ops."""


def capture(module: Deployed, example: Tensor, *, dynamic: bool) -> ExportedProgram:
    """Returns the program of a module, which calls torch's own operators alone.

    Args:
        module: the network and the steps around it.
        example: an input; where the sizes are dynamic, of at least two pictures.
        dynamic: whether batch, height and width are free.

    Raises:
        ExportError: torch cannot export the network, or not for all sizes; the program calls ops of
            fastseg's, which other runtimes do not have.
    """
    free = {i: Dim.DYNAMIC for i, axis in enumerate(module.axes) if isinstance(axis, str)}
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                module, (example,), dynamic_shapes=({**free},) if dynamic else None
            )
    except Exception as error:  # whatever the network and torch's tracing raise
        size = " for all sizes (give a --size without --dynamic)" if dynamic else ""
        raise ExportError(f"the network cannot be exported{size}: {first_line(error)}") from error
    _check_standard(program)
    return program


def _check_standard(program: ExportedProgram) -> None:
    called = {
        node.target.name()
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
    ours = sorted(name.partition(".")[0] for name in called if name.startswith(OURS))
    if ours:
        raise ExportError(
            f"the network calls {', '.join(ours)}, which other runtimes do not have: "
            "load it with backend=torch"
        )


def least_size(program: ExportedProgram, module: Deployed) -> tuple[int, int]:
    """Returns the least height and width that a program with dynamic sizes takes.

    Ranges alone do not tell them: a condition such as "a map of stride 8 has more than one row"
    narrows no range, and is a guard.
    """
    (name,) = program.graph_signature.user_inputs
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == name)
    shape = dict(zip(module.axes, node.meta["val"].shape, strict=True))
    sizes = {axis: shape[axis].node for axis in ("batch", "height", "width")}
    guards = [guard.expr for guard in node.meta["val"].fake_mode.shape_env.guards]

    def holds(**sides: int) -> bool:
        values = {axis: sides.get(axis, size.hint) for axis, size in sizes.items()}
        by_symbol = {sizes[axis].expr: Integer(value) for axis, value in values.items()}
        return not any(guard.xreplace(by_symbol) == false for guard in guards)

    lowest = {a: max(1, int(program.range_constraints[sizes[a].expr].lower)) for a in sizes}
    height = _least(lowest["height"], sizes["height"].hint, lambda h: holds(height=h))
    width = _least(lowest["width"], sizes["width"].hint, lambda w: holds(height=height, width=w))
    return height, width


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Returns the least number from which on up to `high` a condition holds, by bisection."""
    return low + bisect_left(range(low, high), True, key=holds)
