"""MaxPool2d and the MaxUnpool2d that takes its indices: int64 indices become byte codes.

The graph of the whole model shows where the indices go, through whatever tuples and lists its code
hands them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx, nn

from fastseg.optimize.match.indices import bound, pooling_of, unpoolings_of, windows
from fastseg.optimize.trace.stand_ins import NotTraceable
from fastseg.optimize.trace.trace import Trace, Traces, not_torch


class PairedPools(NamedTuple):
    """The poolings and unpoolings of a model.

    Attributes:
        found: the modules that may hand on codes.
        left: the reason why each of the others may not.
        trace: the trace of the whole model, or None.
    """

    found: set[nn.Module]
    left: dict[nn.Module, str]
    trace: Trace | None = None


def paired_pools(model: nn.Module, traces: Traces) -> PairedPools:
    """Follows the indices of all poolings through the model."""
    pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d) and m.return_indices]
    unpools = [m for m in model.modules() if isinstance(m, nn.MaxUnpool2d)]
    everything = [*pools, *unpools]
    if not pools:
        reason = "no MaxPool2d(return_indices=True) in the model"
        return PairedPools(set(), dict.fromkeys(unpools, reason))
    left = {m: reason for m in everything if (reason := traces.steps[m].why_not)}
    try:
        trace = traces.of(model, not_torch)
    except NotTraceable as error:
        reason = f"where its indices go is unknown: {error}"
        return PairedPools(set(), {m: left.get(m, reason) for m in everything})
    partners = _Partners(trace, {*everything})
    pending = True
    while pending:  # a module that is left leaves its partners too
        pending = False
        for module in everything:
            reason = None if module in left else partners.why_not(module, left)
            if reason:
                left[module], pending = reason, True
    return PairedPools({*everything} - left.keys(), left, trace)


class _Partners:
    """Which unpoolings take the indices of which poolings.

    Args:
        trace: the trace of the whole model.
        modules: its poolings and unpoolings.
    """

    def __init__(self, trace: Trace, modules: set[nn.Module]):
        self._steps, self._modules = trace.steps, modules
        self._of = {module: [] for module in modules}
        for node in trace.graph.nodes:
            module = self._steps[node].module
            if module in modules:
                self._of[module].append(self._of_call(node))

    def _of_call(self, call: fx.Node) -> list[nn.Module] | None:
        """The modules that a call hands its indices to or has them from, or None if unknown."""
        if isinstance(self._steps[call].module, nn.MaxPool2d):
            unpools, nothing_else = unpoolings_of(call, self._arguments)
            return [self._steps[node].module for node in unpools] if nothing_else else None
        source = pooling_of(self._arguments(call).get("indices"))
        pool = None if source is None else self._steps[source].module
        return [pool] if isinstance(pool, nn.MaxPool2d) else None

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments of a call of an unpooling by name."""
        module = self._steps[node].module
        if not isinstance(module, nn.MaxUnpool2d):
            return {}
        return bound(nn.MaxUnpool2d.forward, module, *node.args, **node.kwargs)

    def why_not(self, module: nn.Module, left: dict[nn.Module, str]) -> str | None:
        """Why a module cannot hand on or take codes where others are left, or None."""
        if not self._of[module]:
            return "is not called"
        for partners in self._of[module]:
            if partners is None:
                return "its indices go or come another way"
            for partner in partners:
                if partner in left or partner not in self._modules:
                    return "its indices go to or come from one that is left"
                if _windows(partner) != _windows(module):
                    return "its windows are not those of its partner"
        return None


def _windows(module: nn.MaxPool2d | nn.MaxUnpool2d):
    return windows(module.kernel_size, module.stride, module.padding)
