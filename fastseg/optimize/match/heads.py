"""Upsampled logits of which only the class map or the cross-entropy is wanted, in a graph.

The place where that may be is a call of ``argmax``, ``max`` or cross-entropy. From there the graph
is followed back to a bilinear upsampling, which nothing else may read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import fx, nn

from fastseg.optimize.blocks.head_calls import Resizing
from fastseg.optimize.classify.effects import name_of
from fastseg.optimize.classify.eligible import HOOKED, UPSAMPLES
from fastseg.optimize.classify.steps import Kind, Step
from fastseg.optimize.match.chains import changed_before
from fastseg.optimize.match.indices import bound
from fastseg.optimize.match.mentions import may_read_logits
from fastseg.optimize.match.readers import ARGMAX, CROSS_ENTROPY, Reader, reader_of
from fastseg.optimize.trace.trace import Trace, has_own_forward

READ_ELSEWHERE = "the upsampled logits are read elsewhere too"

SAME_VALUES = {ARGMAX: ("contiguous", "detach", "data"), CROSS_ENTROPY: ("contiguous",)}
"""Methods and attributes of tensors that change nothing for what a reader becomes."""

_MODULES_BETWEEN = (
    *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid),
    *(nn.ReLU, nn.Dropout, nn.Dropout2d, nn.Identity),
)


class Place(NamedTuple):
    """A reader of upsampled logits.

    Attributes:
        reader: the reader.
        nodes: the nodes from the upsampling to the last before the reader.
        why_not: why they are left, or None.
        child: the child in whose forward the logits may be upsampled, or None.
        may_change: whether the logits may be written to after the reader.
    """

    reader: Reader
    nodes: list[fx.Node]
    why_not: str | None = None
    child: nn.Module | None = None
    may_change: bool = False

    @property
    def is_found(self) -> bool:
        """Whether the op stands for it."""
        return self.why_not is None and self.child is None

    def explained(self, left: dict[nn.Module, str]) -> str | None:
        """Why it is left, given the reasons why forwards of children cannot be traced, or None."""
        if self.why_not is None and self.child is not None:
            return f"in {type(self.child).__name__}: {left[self.child]}"
        return self.why_not

    def modules(self, trace: Trace) -> list[nn.Module]:
        """The modules that its nodes call."""
        called = (trace.steps[node].module for node in (*self.nodes, self.reader.node))
        return [module for module in called if module is not None]


def find_heads(trace: Trace) -> list[Place]:
    """The places of a graph, those that are left among them."""
    places = []
    for node in trace.graph.nodes:
        reader = reader_of(node, trace.steps[node])
        place = None if reader is None else _place(trace, reader)
        if place is not None:
            places.append(place)
    return places


def _place(trace: Trace, reader: Reader) -> Place | None:
    """The place of a reader, or None where no upsampling is before it."""
    nodes: list[fx.Node] = []
    why_not, value = reader.why_not, reader.logits
    while isinstance(value, fx.Node):
        step = trace.steps[value]
        nodes.insert(0, value)
        if is_upsampling(value, step):
            return _upsampled(trace, reader, nodes, why_not)
        child = child_of(trace, value)
        if child is not None:
            return Place(reader, nodes, why_not, child)
        if not _is_between(value, step):
            return None
        if not _keeps_values(value, step, reader):
            name = name_of(value) or type(step.module).__name__
            why_not = why_not or f"{name} stands between the upsampling and it"
        value = value.all_input_nodes[0]
    return None


def _upsampled(trace: Trace, reader: Reader, nodes: list[fx.Node], why_not: str | None) -> Place:
    """The place whose first node is the upsampling."""
    given = _arguments(nodes[0], trace.steps[nodes[0]])
    logits = given.get("input")
    if not isinstance(logits, fx.Node):
        return Place(reader, nodes, why_not or "its upsampling is called in a way of its own")
    why_not = why_not or _why_not(trace, nodes, reader, given)
    later = trace.memory.may_change_after(reader.node, logits, reader.nodes)
    return Place(reader, nodes, why_not, None, later)


def is_upsampling(node: fx.Node, step: Step) -> bool:
    """Whether a node resizes a map."""
    return node.target is F.interpolate or type(step.module) in UPSAMPLES


def child_of(trace: Trace, node: fx.Node) -> nn.Module | None:
    """The child with a forward of its own that a value, or what it is a part of, comes from."""
    while node.op == "call_function" and name_of(node) == "getitem":
        node = node.args[0]
    step = trace.steps[node]
    is_child = node.op == "call_module" and has_own_forward(step.module) and not step.is_op
    return step.module if is_child else None


def reading_children(trace: Trace) -> list[nn.Module]:
    """The children in whose forwards upsampled logits may be read."""
    children = []
    for node in trace.graph.nodes:
        child = child_of(trace, node) if node.op == "call_module" else None
        # What has parameters goes on computing maps.
        if child is not None and next(child.parameters(), None) is None and may_read_logits(child):
            children.append(child)
    return children


def _is_between(node: fx.Node, step: Step) -> bool:
    """Whether a node makes one map of one map, without weights."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        return type(step.module) in _MODULES_BETWEEN
    return bool(name_of(node))


def _keeps_values(node: fx.Node, step: Step, reader: Reader) -> bool:
    if node.op == "call_module":
        return step.kind is Kind.IDENTITY
    return node.op != "get_attr" and name_of(node) in SAME_VALUES[reader.becomes]


def _why_not(trace: Trace, nodes: list[fx.Node], reader: Reader, given: dict) -> str | None:
    """Why upsampled logits and their reader cannot be one op, or None."""
    step = trace.steps[nodes[0]]
    if step.is_hooked:
        return f"its upsampling {HOOKED}"
    mode = given.get("mode") if step.module is None else step.module.mode
    if mode != "bilinear":
        return f"its upsampling is {mode}" if isinstance(mode, str) else "its mode is computed"
    if given.get("antialias"):
        return "its upsampling smooths against aliases"
    for node, user in zip(nodes, [*nodes[1:], reader.node], strict=True):
        if [*node.users] != [user]:
            return READ_ELSEWHERE
    if reader.also_reads(nodes):
        return READ_ELSEWHERE
    if changed_before(trace, nodes, reader.node):
        return "what is upsampled may be written to before it"
    return None


def _arguments(upsampling: fx.Node, step: Step) -> dict:
    """The arguments of an upsampling by name."""
    if step.module is None:
        return bound(F.interpolate, *upsampling.args, **upsampling.kwargs)
    return bound(nn.Upsample.forward, step.module, *upsampling.args, **upsampling.kwargs)


def fuse_heads(trace: Trace, places: list[Place]) -> None:
    """Makes one call of each place, in place."""
    graph = trace.graph
    for place in places:
        upsampling, reader = place.nodes[0], place.reader
        step = trace.steps[upsampling]
        given = _arguments(upsampling, step)
        with graph.inserting_before(reader.node):
            if step.module is None:
                how = Resizing(**{name: given[name] for name in Resizing._fields})
            else:
                how = graph.get_attr(upsampling.target)
            call = reader.call(graph, given["input"], how, place.may_change)
        for result in reader.results:
            result.replace_all_uses_with(call)
        for node in (*reader.nodes[::-1], *place.nodes[::-1]):
            graph.erase_node(node)
