"""The exported program of torch, from which all formats are written."""

from __future__ import annotations

import torch
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
    """Returns the least height and width that a program with dynamic sizes takes."""
    (name,) = program.graph_signature.user_inputs
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == name)
    sizes = dict(zip(module.axes, node.meta["val"].shape, strict=True))
    ranges = (program.range_constraints[sizes[a].node.expr] for a in ("height", "width"))
    return tuple(max(1, int(r.lower)) for r in ranges)
