"""Max-pooling and the max-unpooling that takes its indices: int64 indices become byte codes.

Only where all indices go from such a pooling to such an unpooling and nowhere else, which the graph
of the whole model shows, through whatever tuples and lists its code hands them.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from torch import fx, nn

from fastseg._core.pool2d import Pool2d, pool2d
from fastseg.optimize.classify.effects import module_of
from fastseg.optimize.classify.eligible import has_hooks, why_not_pool
from fastseg.optimize.trace.stand_ins import NotTraceable
from fastseg.optimize.trace.trace import Trace, Traces, not_torch


class PairedPools(NamedTuple):
    """The poolings and unpoolings of a model.

    Attributes:
        found: those that may hand on codes.
        left: of the others, why not.
        trace: of the whole model, or None.
    """

    found: set[nn.Module]
    left: dict[nn.Module, str]
    trace: Trace | None = None


def paired_pools(model: nn.Module, traces: Traces) -> PairedPools:
    """Follows the indices through the model."""
    pools = {m for m in model.modules() if isinstance(m, nn.MaxPool2d) and m.return_indices}
    unpools = {m for m in model.modules() if isinstance(m, nn.MaxUnpool2d)}
    if not pools:
        reason = "no MaxPool2d(return_indices=True) in the model"
        return PairedPools(set(), dict.fromkeys(unpools, reason))
    left = {m: reason for m in pools if (reason := why_not_pool(m))}
    for m in unpools:
        if type(m) is not nn.MaxUnpool2d or has_hooks(m):
            left[m] = "a class of its own or has hooks"
    try:
        trace = traces.of(model, not_torch)
    except NotTraceable as error:
        reason = f"where its indices go is unknown: {error}"
        return PairedPools(set(), {m: left.get(m, reason) for m in pools | unpools})
    nodes = trace.graph.nodes
    calls = {m: [n for n in nodes if module_of(model, n) is m] for m in pools | unpools}
    pending = True
    while pending:  # one that is left leaves those that it is paired with
        pending = False
        for m in pools | unpools:
            if m in left:
                continue
            reason = _why_not(model, m, calls[m], pools | unpools, left)
            if reason:
                left[m], pending = reason, True
    return PairedPools((pools | unpools) - left.keys(), left, trace)


def _why_not(model, module, calls: list[fx.Node], all_of_them, left) -> str | None:
    if not calls:
        return "is not called"
    for call in calls:
        if isinstance(module, nn.MaxPool2d):
            partners = _unpoolings(model, call)
        else:
            partners = _pooling(model, call)
        if partners is None:
            return "its indices go or come another way"
        for partner in partners:
            if partner in left or partner not in all_of_them:
                return "its indices go to or come from one that is left"
            if _geometry(partner) != _geometry(module):
                return "its windows are not those of its partner"
    return None


def _unpoolings(model, call: fx.Node) -> list[nn.Module] | None:
    """Where a pooling's indices go."""
    partners = []
    for user in call.users:
        if user.target is not operator.getitem or user.args[1] not in (0, 1):
            return None
        if user.args[1] == 1:
            for taker in user.users:
                module = module_of(model, taker)
                used_once = taker.all_input_nodes.count(user) == 1
                if not isinstance(module, nn.MaxUnpool2d) or not used_once:
                    return None
                if _indices(taker) is not user:
                    return None
                partners.append(module)
    return partners


def _pooling(model, call: fx.Node) -> list[nn.Module] | None:
    """Where an unpooling's indices come from."""
    indices = _indices(call)
    if not isinstance(indices, fx.Node) or indices.target is not operator.getitem:
        return None
    source = indices.args[0]
    if not isinstance(source, fx.Node) or indices.args[1] != 1:
        return None
    module = module_of(model, source)
    return [module] if isinstance(module, nn.MaxPool2d) else None


def _indices(call: fx.Node):
    return call.args[1] if len(call.args) > 1 else call.kwargs.get("indices")


def _geometry(module: nn.MaxPool2d | nn.MaxUnpool2d) -> Pool2d:
    return pool2d("fastseg.optimize_", module.kernel_size, module.stride, module.padding)
