"""``F.max_pool2d(return_indices=True)`` and ``F.max_unpool2d`` in a forward: byte codes as well.

Where a block's graph shows that a pooling's indices go to unpoolings in it and nowhere else.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch.nn.functional as F
from torch import fx

from fastseg._core.pool2d import Pool2d, pool2d
from fastseg.optimize.blocks.calls import pool_to_codes, unpool_codes

NAMES = {F.max_pool2d_with_indices: "F.max_pool2d", F.max_unpool2d: "F.max_unpool2d"}
"""What the report calls them."""

NO_POOLING = "its indices come from no max_pool2d in this forward"


def find_functional(graph: fx.Graph) -> tuple[list[fx.Node], dict[fx.Node, str]]:
    """The calls that may take byte codes, and of the others why not."""
    calls = [n for n in graph.nodes if n.op == "call_function" and n.target in NAMES]
    left = {n: NO_POOLING for n in calls if n.target is F.max_unpool2d}
    found = []
    for pool in calls:
        if pool.target is F.max_unpool2d:
            continue
        unpools, reason = _unpoolings(pool)
        if reason is None:
            found += [pool, *unpools]
            for unpool in unpools:
                del left[unpool]
        else:
            left[pool] = reason
            left.update(dict.fromkeys(unpools, "its indices come from a max_pool2d that is left"))
    return found, left


def _unpoolings(pool: fx.Node) -> tuple[list[fx.Node], str | None]:
    """Where a pooling's indices go, and why they cannot be codes."""
    unpools, reason = [], None
    for user in pool.users:
        if user.target is not operator.getitem or user.args[1] not in (0, 1):
            reason = "its indices go elsewhere than to max_unpool2d in this forward"
            continue
        for taker in user.users if user.args[1] == 1 else ():
            if (
                taker.target is F.max_unpool2d
                and _arguments(taker)["indices"] is user
                and taker.all_input_nodes.count(user) == 1
            ):
                unpools.append(taker)
            else:
                reason = "its indices go elsewhere than to max_unpool2d in this forward"
    if reason is None:
        try:
            windows = {_geometry(call) for call in (pool, *unpools)}
        except (TypeError, RuntimeError) as error:
            return unpools, str(error)
        if len(windows) > 1:
            reason = "its windows are not those of its max_unpool2d, or dilated"
    return unpools, reason


def _arguments(call: fx.Node) -> dict[str, Any]:
    bound = inspect.signature(call.target).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _geometry(call: fx.Node) -> Pool2d:
    """The windows, dilated as they are not for an unpooling."""
    a = _arguments(call)
    window = [a[name] for name in ("kernel_size", "stride", "padding")] + [a.get("dilation", 1)]
    if any(isinstance(n, fx.Node) for value in window for n in _flat(value)):
        raise TypeError("its windows are computed in the forward")
    return pool2d("fastseg.optimize_", *window)


def _flat(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def take_codes(calls: list[fx.Node]) -> None:
    """Each becomes a call of fastseg's op, in place."""
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
