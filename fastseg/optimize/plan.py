"""What is to be done to a model, found out before anything is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import fx, nn

from fastseg.optimize.blocks.conditions import conditions_of
from fastseg.optimize.blocks.convolve import may_own
from fastseg.optimize.blocks.guard import Guard
from fastseg.optimize.blocks.modules import Atrous, Codes, Folded, Folding, Frozen, Fused, Relaid
from fastseg.optimize.blocks.pairs import Pairs
from fastseg.optimize.blocks.rewriting import Rewriting, forms_of, put_in
from fastseg.optimize.blocks.swap import Swapped, subclass, swap
from fastseg.optimize.classify.eligible import HOOKED
from fastseg.optimize.classify.steps import Kind, Steps
from fastseg.optimize.match.aspp import find_aspp, fuse_aspp, lists_of_modules
from fastseg.optimize.match.chains import (
    NO_CONVOLUTION,
    find_chains,
    find_pooled,
    fuse,
    fuse_pooled,
    why_alone,
)
from fastseg.optimize.match.function_pooling import NAMES, find_functional, take_codes
from fastseg.optimize.match.heads import (
    find_heads,
    fuse_heads,
    reading_children,
)
from fastseg.optimize.match.mentions import may_read_logits, names_of_readers
from fastseg.optimize.match.module_pooling import PairedPools, paired_pools
from fastseg.optimize.trace.class_questions import ASKED, asked_for_classes
from fastseg.optimize.trace.stand_ins import NotTraceable
from fastseg.optimize.trace.trace import (
    ANY_FORM,
    DIFFERS,
    Chosen,
    Form,
    Trace,
    Traces,
    has_own_forward,
    is_sequential,
    sequential_only,
)


class Plan:
    """What is to be done to a model.

    Attributes:
        names: the name of each module in the model.
        steps: what each module computes, or why no op can stand for it.
        modules: all modules that may be swapped.
        swapped: the convolutions that fastseg computes also where they are called on their own.
        rewritings: the new forwards of each block that has some.
        with_aspp: the blocks that are an ASPP or have one in their forward.
        in_chain: what each convolution is fused with, in words.
        folded: the batch norms that are fused.
        pools: poolings and unpoolings that hand on byte codes.
        functions: the functions of pooling that each block calls, with the reason why each is
            left, or None.
        heads: what reads upsampled logits in each block, with what it becomes, and the reason why
            it is left, or None.
        untraceable: the reason for each block that cannot be traced.
        alone: the reason for each batch norm that is called on its own.
    """

    def __init__(
        self, model: nn.Module, mode: str, filter_fn: Callable[[nn.Module, str], bool] | None
    ):
        self.model, self.mode = model, mode
        self.names = {m: name for name, m in model.named_modules()}
        of_fastseg = {
            inner
            for m in self.names
            if type(m).__module__.startswith("fastseg.nn.")
            for inner in m.modules()
        }
        asked = asked_for_classes(model)
        self.modules = [m for m in self.names if m not in of_fastseg]
        self.steps = Steps(model, dict.fromkeys(asked, ASKED))
        self.traces = Traces(self.steps)
        self._filter, self._wanted = filter_fn, {}
        self.swapped = {m for m in self.modules if self._swaps_conv(m)}
        self.rewritings: dict[nn.Module, list[Rewriting]] = {}
        self.with_aspp: set[nn.Module] = set()
        self.in_chain: dict[nn.Module, str] = {}
        self.folded: set[nn.Module] = set()
        self.functions: dict[nn.Module, list[tuple[str, str | None]]] = {}
        self.heads: dict[nn.Module, Counter[tuple[str, str, str | None]]] = {}
        self.untraceable: dict[nn.Module, str] = {}
        self.alone: dict[nn.Module, str] = {}
        self._known: set[tuple] = set()
        # Inner Sequentials come first: what they fuse needs no other forward around them.
        inner_first = [m for m in self.modules[::-1] if m not in asked]
        for module in sorted(inner_first, key=lambda m: not is_sequential(m)):
            is_norm = self.steps[module].kind is Kind.BATCH_NORM
            if has_own_forward(module) and not is_norm and self._has_work(module):
                self._plan_block(module)
        self.pools = self._plan_pools()

    def wanted(self, module: nn.Module) -> bool:
        """Whether the caller's filter takes a module; the filter is asked once."""
        if self._filter is None:
            return True
        if module not in self._wanted:
            self._wanted[module] = bool(self._filter(module, self.names[module]))
        return self._wanted[module]

    def _has_work(self, block: nn.Module) -> bool:
        """Whether a block has a convolution or a batch norm, or may read logits."""
        kinds = (Kind.CONV, Kind.BATCH_NORM)
        return any(self.steps[m].kind in kinds for m in block.modules()) or may_read_logits(block)

    def _swaps_conv(self, module: nn.Module) -> bool:
        """Whether fastseg computes a convolution on its own."""
        step = self.steps[module]
        if step.kind is not Kind.CONV or step.why_not or not self.wanted(module):
            return False
        return self.mode == "infer" or may_own(module)

    def _relays(self, module: nn.Module) -> bool:
        """Whether a module is an instance norm that is handed contiguous maps."""
        step = self.steps[module]
        return step.kind is Kind.INSTANCE_NORM and step.why_not is None

    def _plan_block(self, block: nn.Module) -> None:
        """Rewrites the block's forward if that fuses what Sequentials alone do not."""
        forms = (ANY_FORM, *(forms_of(block) if may_read_logits(block) else ()))
        reasons = [self._plan_modes(block, form) for form in forms]
        if reasons[0] is not None:
            self.untraceable[block] = reasons[0]
        reason = next(filter(None, reasons), None)
        if reason is not None and not self.heads.get(block):
            self.heads[block] = Counter((name, "", reason) for name in names_of_readers(block))

    def _plan_modes(self, block: nn.Module, form: Form) -> str | None:
        """Rewrites the block's forward for one way to call it, in each mode if they differ.

        Returns:
            The reason why there is no one forward for both modes, or None.
        """
        reason = self._tried(block, form)
        for training in (True, False) if reason == DIFFERS else ():
            self._tried(block, form._replace(training=training))
        return reason

    def _tried(self, block: nn.Module, form: Form) -> str | None:
        """Rewrites the block's forward for one way to call it, or tells why not."""
        try:
            self._plan_form(block, form)
        except NotTraceable as error:
            return str(error)
        return None

    def _plan_form(self, block: nn.Module, form: Form) -> None:
        """Rewrites the block's forward for one way to call it.

        Raises:
            NotTraceable: the forward is to be left, and the reason why.
        """
        trace, aspps, heads = self._trace_to_heads(block, form)
        if form != ANY_FORM and not heads:
            return
        in_aspp = {node for aspp in aspps for node in aspp.nodes}
        chains = [c for c in find_chains(trace, self.wanted) if in_aspp.isdisjoint(c.nodes)]
        pooled = [
            p
            for p in find_pooled(trace, chains)
            if in_aspp.isdisjoint(p) and self.wanted(trace.steps[p.pool].module)
        ]
        functions = self._plan_functions(block, trace.graph)
        self._explain(trace)
        more = aspps or pooled or functions or heads
        if not more and {c.key for c in chains} <= self._known:
            return
        replaced = {m for chain in chains for m in chain.modules(block)}
        replaced |= {trace.steps[node].module for p in pooled for node in p}
        replaced |= {m for head in heads for m in head.modules(trace)}
        for aspp in aspps:
            self.with_aspp.add(block)
            for inner in aspp.traces:
                replaced |= {m for m in inner.root.modules() if m is not block}
        for chain in (*chains, *(chain for aspp in aspps for chain in aspp.chains)):
            self._known.add(chain.key)
            self.in_chain[chain.conv] = str(chain)
            self.folded |= {chain.bn} - {None}
        self.folded |= {trace.steps[p.bn].module for p in pooled}
        fuse_aspp(trace.graph, aspps)
        fuse(trace, chains)
        fuse_pooled(trace, pooled)
        fuse_heads(trace, heads)
        take_codes(functions)
        traces = [trace, *(inner for aspp in aspps for inner in aspp.traces)]
        replaced |= {m for t in traces for m in (*t.inlined, *t.memory.relied_on)}
        replaced &= {*block.modules()}  # each call makes its slices of Sequentials anew
        trains = bool(aspps or functions or heads)
        rewriting = Rewriting(trace.graph, traces, replaced - {block}, trains)
        self.rewritings.setdefault(block, []).append(rewriting)

    def _trace_to_heads(self, block: nn.Module, form: Form):
        """The trace of a block's forward, the ASPPs in it, and where logits are upsampled for one.

        The forwards of children in which the logits are upsampled or read are part of it.
        """
        first = trace, aspps = self._trace(block, form)
        inside: frozenset[nn.Module] = frozenset()
        left: dict[nn.Module, str] = {}
        while True:
            places = find_heads(trace)
            children = [p.child for p in places if p.child is not None]
            children += [m for m in reading_children(trace) if not self._has_head(m)]
            left.update((c, HOOKED) for c in children if self.steps[c].is_hooked)
            child = next((c for c in children if c not in inside and c not in left), None)
            if child is None:
                break
            try:
                trace, aspps = self._trace(block, form, inside | {child})
                inside |= {child}
            except NotTraceable as error:
                left[child] = str(error)
        heads = [place for place in places if place.is_found]
        unwanted = None if not heads or self.wanted(block) else "filter_fn"
        self.heads[block] = self.heads.get(block, Counter()) | Counter(
            (place.reader.name, place.reader.becomes, place.explained(left) or unwanted)
            for place in places
        )
        return (trace, aspps, heads) if heads and not unwanted else (*first, [])

    def _has_head(self, block: nn.Module) -> bool:
        """Whether a block has upsampled logits and what reads them in its own forward."""
        if block in self.heads:
            return any(why_not is None for *_, why_not in self.heads[block])
        try:
            return any(place.is_found for place in find_heads(self._trace(block)[0]))
        except NotTraceable:
            return False

    def _trace(
        self,
        block: nn.Module,
        form: Form = ANY_FORM,
        children: frozenset[nn.Module] = frozenset(),
    ):
        """The trace of a block's forward, with some children's in it, and the ASPPs in it."""
        convs = (m for m in block.modules() if isinstance(m, nn.Conv2d))
        if any(max(conv.dilation) > 1 for conv in convs) and not is_sequential(block):
            aspps = []
            try:
                trace = self.traces.of(block, Chosen(lists_of_modules, children), form)
                aspps = [
                    aspp
                    for aspp in find_aspp(trace, self.traces)
                    if all(self.wanted(chain.conv) for chain in aspp.chains)
                ]
            except NotTraceable:
                pass
            if aspps and self.wanted(block):
                return trace, aspps
        return self.traces.of(block, Chosen(sequential_only, children), form), []

    def _explain(self, trace: Trace) -> None:
        """Notes why batch norms in a trace are called on their own."""
        for node, step in trace.steps.items():
            if step.kind is Kind.BATCH_NORM:
                reason = why_alone(trace, node, self.wanted)
                if reason != NO_CONVOLUTION or step.module not in self.alone:
                    self.alone[step.module] = reason

    def _plan_functions(self, block: nn.Module, graph: fx.Graph) -> list[fx.Node]:
        """The calls of pooling functions that take byte codes."""
        found, left = find_functional(graph)
        if found and not self.wanted(block):
            left.update(dict.fromkeys(found, "filter_fn"))
            found = []
        calls = [n for n in graph.nodes if n in left or n in found]
        self.functions.setdefault(block, [(NAMES[n.target], left.get(n)) for n in calls])
        return found

    def _plan_pools(self) -> PairedPools:
        pools = paired_pools(self.model, self.traces)
        # A pooling hands nothing on without its unpooling.
        if any(not self.wanted(m) for m in pools.found):
            pools.left.update(dict.fromkeys(pools.found, "filter_fn"))
            pools.found.clear()
        return pools

    def apply(self) -> None:
        """Swaps what is to be swapped in the model, in place."""
        swaps = self._swaps()
        # A class that allows no subclass raises here, before anything is swapped.
        for module, mixin in swaps:
            subclass(mixin, type(module))
        for module, mixin in swaps:
            swap(module, mixin)
        for block, rewritings in self.rewritings.items():
            put_in(block, rewritings)
        if self.pools.found:
            self._watch_pools()

    def _swaps(self) -> list[tuple[nn.Module, type[Swapped]]]:
        """The modules that are to be swapped, each with what it becomes."""
        infer = self.mode == "infer"
        swaps: list[tuple[nn.Module, type[Swapped]]] = []
        for module in self.modules:
            if module in self.swapped:
                swaps.append((module, Frozen if infer else Atrous))
            elif module in self.folded:
                swaps.append((module, Folded if infer else Folding))
            elif module in self.pools.found:
                swaps.append((module, Codes))
            elif infer and self._relays(module):
                swaps.append((module, Relaid))
        blocks = dict.fromkeys((*self.rewritings, *([self.model] if self.pools.found else ())))
        return swaps + [(block, Fused) for block in blocks]

    def _watch_pools(self) -> None:
        trace = self.pools.trace
        replaced = {*trace.inlined, *self.pools.found} - {self.model}
        guard = Guard(self.model, conditions_of(self.model, trace.witnesses, replaced))
        guard.compile()
        poolings = [m for m in self.pools.found if isinstance(m, nn.MaxPool2d)]
        self.model._pairs = Pairs(guard, poolings)
