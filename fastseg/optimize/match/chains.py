"""Convolution, batch norm, residual and activation in a graph, put into one call.

A chain is a Conv2d and what follows it, each value used by the next alone::

    conv -> [batch norm] -> [+ residual] -> [activation]

wherever the code has it: neighbours in a Sequential, or calls in a forward with one ReLU for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import fx, nn

from fastseg.optimize.blocks.calls import bn_relu_pool, conv_bn_act
from fastseg.optimize.classify.steps import Kind
from fastseg.optimize.trace.trace import Trace

NO_CONVOLUTION = "follows no convolution"


class Chain(NamedTuple):
    """A convolution in a graph and what may be one op with it.

    Attributes:
        nodes: the nodes from the first to the last.
        conv: the convolution.
        bn: its batch norm, or None.
        bn_name: the batch norm's name in the graph's root, or None.
        activation: the op's name for the activation after them, or "".
        ends_with: the activation, also where it is a part of timm's batch norm.
        addition: the node that adds the residual, or None.
    """

    nodes: list[fx.Node]
    conv: nn.Conv2d
    bn: nn.Module | None
    bn_name: str | None
    activation: str
    ends_with: str
    addition: fx.Node | None

    @property
    def key(self) -> tuple:
        """A key that is the same for the same chain in another graph."""
        return id(self.conv), id(self.bn), self.activation, self.addition is not None

    def modules(self, root: nn.Module) -> list[nn.Module]:
        """The modules that its nodes call."""
        return [root.get_submodule(n.target) for n in self.nodes if n.op == "call_module"]

    def __str__(self) -> str:
        parts = ["conv"]
        parts += ["batch norm"] if self.bn is not None else []
        parts += ["residual"] if self.addition is not None else []
        parts += [self.ends_with] if self.ends_with else []
        return " + ".join(parts)


def find_chains(trace: Trace, wanted: Callable[[nn.Module], bool]) -> list[Chain]:
    """The chains of two links or more whose convolution is wanted, with no node in two of them."""
    taken: set[fx.Node] = set()
    chains = []
    for node, step in trace.steps.items():
        if step.kind is Kind.CONV and step.why_not is None and wanted(step.module):
            chain = follow(trace, node, taken)
            if len(chain.nodes) > 1:
                taken.update(chain.nodes)
                chains.append(chain)
    return chains


def follow(trace: Trace, node: fx.Node, taken: set[fx.Node]) -> Chain:
    """A convolution's call and what may be one op with it, which may be nothing."""
    steps = trace.steps
    nodes, bn, addition, activation = [node], None, None, ""

    def following() -> fx.Node | None:
        user = only_user(nodes[-1])
        while user is not None and steps[user].kind is Kind.IDENTITY:
            nodes.append(user)
            user = only_user(user)
        return None if user in taken else user

    def joins(user: fx.Node | None, kind: Kind) -> bool:
        return user is not None and steps[user].kind is kind and steps[user].why_not is None

    user = following()
    if joins(user, Kind.BATCH_NORM) and not changed_before(trace, nodes, user):
        bn = user
        nodes.append(user)
        user = following()
    if bn is None or not steps[bn].name:
        if joins(user, Kind.ADDITION):
            residual = _added(trace, user, nodes[-1])
            if residual is not None and not changed_before(trace, nodes, user):
                addition = user
                nodes.append(user)
                user = following()
        if joins(user, Kind.ACTIVATION) and not (
            changed_before(trace, nodes, user)
            or (addition and trace.memory.changed_between(addition, user, {residual}, nodes))
        ):
            activation = steps[user].name
            nodes.append(user)
    while steps[nodes[-1]].kind is Kind.IDENTITY:
        nodes.pop()
    conv = steps[node].module
    if bn is None:
        return Chain(nodes, conv, None, None, activation, activation, addition)
    ends_with = activation or steps[bn].name
    return Chain(nodes, conv, steps[bn].module, bn.target, activation, ends_with, addition)


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that uses a node's value, if that is one alone."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(trace: Trace, node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What a node adds to the value, or None if it may write to anything but the value."""
    first, second = node.args
    if first is second or not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if second is value and trace.memory.writes(node):
        return None
    return second if first is value else first


def changed_before(trace: Trace, chain: list[fx.Node], last: fx.Node) -> bool:
    """Whether what a chain's first node reads, or its modules, may be changed before `last`.

    The call that replaces the chain stands at `last`.
    """
    return trace.memory.changed_between(chain[0], last, chain[0].all_input_nodes, chain)


def fuse(trace: Trace, chains: list[Chain]) -> None:
    """Makes one call of each chain, in place."""
    graph = trace.graph
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        with graph.inserting_before(last):
            conv = graph.get_attr(first.target)
            bn = None if chain.bn is None else graph.get_attr(chain.bn_name)
            arguments, options = (conv, bn, chain.activation, first.args[0]), {}
            if chain.addition is not None:
                # The residual is read here: it may be the end of a chain before this one.
                arguments += tuple(n for n in chain.addition.args if n not in chain.nodes)
                options["in_place"] = trace.memory.writes(chain.addition)
            call = graph.call_function(conv_bn_act, arguments, options)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


class PooledBatchNorm(NamedTuple):
    """Calls of batch norm, ReLU and max-pooling, each value used by the next alone."""

    bn: fx.Node
    relu: fx.Node
    pool: fx.Node


def find_pooled(trace: Trace, chains: list[Chain]) -> list[PooledBatchNorm]:
    """The patterns whose batch norm is part of no chain."""
    taken = {node for chain in chains for node in chain.nodes}
    found = []
    for bn, step in trace.steps.items():
        if bn in taken or step.kind is not Kind.BATCH_NORM or step.why_not or step.name:
            continue
        relu = only_user(bn)
        pool = None if relu is None else only_user(relu)
        if pool is None or relu.op != "call_module" or trace.steps[relu].name != "relu":
            continue
        is_pool = trace.steps[pool].kind is Kind.POOL and len(pool.args) == 1 and not pool.kwargs
        if is_pool and not changed_before(trace, [bn, relu], pool):
            found.append(PooledBatchNorm(bn, relu, pool))
    return found


def fuse_pooled(trace: Trace, found: list[PooledBatchNorm]) -> None:
    """Makes one call of each pattern, in place."""
    graph = trace.graph
    for nodes in found:
        with graph.inserting_before(nodes.pool):
            modules = [graph.get_attr(node.target) for node in nodes]
            call = graph.call_function(bn_relu_pool, (*modules, nodes.bn.args[0]))
        nodes.pool.replace_all_uses_with(call)
        for node in reversed(nodes):
            graph.erase_node(node)


def why_alone(trace: Trace, node: fx.Node, wanted: Callable[[nn.Module], bool]) -> str:
    """Why a batch norm is in no chain, by the node that calls it."""
    before = node.all_input_nodes[0] if node.all_input_nodes else None
    step = trace.steps.get(before)
    if step is not None and step.kind is Kind.TRANSPOSED_CONV:
        return "follows a transposed convolution"
    if step is None or step.kind is not Kind.CONV:
        return NO_CONVOLUTION
    if step.why_not or not wanted(step.module):
        return "follows a convolution that is left"
    if only_user(before) is None:
        return "what it normalises is read elsewhere too"
    return "what its convolution reads may be written to before it"
