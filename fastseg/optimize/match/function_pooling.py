"""Pooling and unpooling by functions in one forward: int64 indices become byte codes as well.

``F.max_pool2d(return_indices=True)`` and ``F.max_unpool2d`` become calls of fastseg's ops where a
block's graph shows that a pooling's indices go to unpoolings in it and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

from fastseg.optimize.blocks.calls import pool_to_codes, unpool_codes
from fastseg.optimize.match.indices import bound, unpoolings_of, windows

NAMES = {F.max_pool2d_with_indices: "F.max_pool2d", F.max_unpool2d: "F.max_unpool2d"}
"""Names of the functions in the report."""

NO_POOLING = "its indices come from no max_pool2d in this forward"
ELSEWHERE = "its indices go elsewhere than to max_unpool2d in this forward"


def find_functional(graph: fx.Graph) -> tuple[list[fx.Node], dict[fx.Node, str]]:
    """The calls that may take byte codes, and the reason why each of the others may not."""
    calls = [n for n in graph.nodes if n.op == "call_function" and n.target in NAMES]
    left = {n: NO_POOLING for n in calls if n.target is F.max_unpool2d}
    found = []
    for pool in calls:
        if pool.target is F.max_unpool2d:
            continue
        unpools, nothing_else = unpoolings_of(pool, _of_unpooling)
        reason = _why_not(pool, unpools) if nothing_else else ELSEWHERE
        if reason is None:
            found += [pool, *unpools]
            for unpool in unpools:
                del left[unpool]
        else:
            left[pool] = reason
            left.update(dict.fromkeys(unpools, "its indices come from a max_pool2d that is left"))
    return found, left


def _of_unpooling(node: fx.Node) -> dict[str, Any]:
    return _arguments(node) if node.target is F.max_unpool2d else {}


def _why_not(pool: fx.Node, unpools: list[fx.Node]) -> str | None:
    """Why a pooling and its unpoolings cannot hand on codes, or None."""
    try:
        found = {_windows(call) for call in (pool, *unpools)}
    except (TypeError, RuntimeError) as error:
        return str(error)
    return "its windows are not those of its max_unpool2d, or dilated" if len(found) > 1 else None


def _arguments(call: fx.Node) -> dict[str, Any]:
    return bound(call.target, *call.args, **call.kwargs)


def _windows(call: fx.Node):
    """The windows of a call.

    Raises:
        TypeError: they are computed in the forward.
    """
    arguments = _arguments(call)
    names = ("kernel_size", "stride", "padding", "dilation")
    window = {name: arguments[name] for name in names if name in arguments}
    parts = [v for w in window.values() for v in (w if isinstance(w, list | tuple) else (w,))]
    if any(isinstance(part, fx.Node) for part in parts):
        raise TypeError("its windows are computed in the forward")
    return windows(**window)


def take_codes(calls: list[fx.Node]) -> None:
    """Makes each call a call of fastseg's op, in place."""
    for call in calls:
        a = _arguments(call)
        window = a["kernel_size"], a["stride"], a["padding"]
        if call.target is F.max_unpool2d:
            call.target = unpool_codes
            call.args = (a["input"], a["indices"], *window, a["output_size"])
        else:
            call.target = pool_to_codes
            call.args = (a["input"], *window, a["dilation"], a["ceil_mode"])
        call.kwargs = {}
