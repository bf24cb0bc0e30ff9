"""Convolution, batch norm, residual and activation in a graph, put into one call.

A chain is a Conv2d and what follows it, each value used by the next alone::

    conv -> [batch norm] -> [+ residual] -> [activation]

wherever the code has it: neighbours in a Sequential, or calls in a forward with one ReLU for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import fx, nn

from fastseg.optimize.eligible import (
    ACTIVATION_FUNCTIONS,
    ACTIVATION_METHODS,
    ADDITIONS,
    activation_of,
    is_batch_norm,
    own_activation,
    why_not_batch_norm,
    why_not_conv,
)
from fastseg.optimize.modules import bn_relu_pool, conv_bn_act


class Chain(NamedTuple):
    """Nodes of a graph, and their modules."""

    nodes: list[fx.Node]  # from the first to the last
    conv: nn.Conv2d
    bn: nn.Module | None
    activation: str
    residual: fx.Node | None

    @property
    def key(self) -> tuple:
        """The same for the same chain in another graph."""
        return id(self.conv), id(self.bn), self.activation, self.residual is not None

    @property
    def ends_with(self) -> str:
        """The activation, that of timm's batch norm included."""
        return self.activation or own_activation(self.bn)

    def __str__(self) -> str:
        parts = ["conv"]
        parts += ["batch norm"] if self.bn is not None else []
        parts += ["residual"] if self.residual is not None else []
        parts += [self.ends_with] if self.ends_with else []
        return " + ".join(parts)


def find_chains(
    root: nn.Module, graph: fx.Graph, wanted: Callable[[nn.Module], bool]
) -> list[Chain]:
    """The chains of two links or more whose convolution is wanted; no node is in two of them."""
    taken: set[fx.Node] = set()
    chains = []
    for node in graph.nodes:
        conv = module_of(root, node)
        if not isinstance(conv, nn.Conv2d) or why_not_conv(conv) or not wanted(conv):
            continue
        if len(node.args) != 1 or node.kwargs:
            continue
        chain = follow(root, node, conv, taken)
        if len(chain.nodes) > 1:
            taken.update(chain.nodes)
            chains.append(chain)
    return chains


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return root.get_submodule(node.target) if node.op == "call_module" else None


def follow(root, node: fx.Node, conv: nn.Conv2d, taken: set[fx.Node]) -> Chain:
    """A convolution's call and what may be one op with it, which may be nothing."""
    nodes, bn, residual, activation = [node], None, None, ""

    def following() -> fx.Node | None:
        user = only_user(nodes[-1])
        while user is not None and type(module_of(root, user)) is nn.Identity:
            nodes.append(user)
            user = only_user(user)
        return None if user in taken else user

    user, own = following(), ""
    module = None if user is None else module_of(root, user)
    if _folds(module) and not _written_before(root, nodes, user):
        bn = module
        nodes.append(user)
        own = own_activation(bn)
        user = following()
    if user is not None and not own:
        other = _added(user, nodes[-1])
        if other is not None and not _written_before(root, nodes, user, other):
            residual = other
            nodes.append(user)
            user = following()
        act = None if user is None else _activation(root, user)
        if act and not _written_before(root, nodes, user, residual):
            activation = act
            nodes.append(user)
    while type(module_of(root, nodes[-1])) is nn.Identity:
        nodes.pop()
    return Chain(nodes, conv, bn, activation, residual)


def _folds(module: nn.Module | None) -> bool:
    return module is not None and is_batch_norm(module) and why_not_batch_norm(module) is None


NO_CONVOLUTION = "follows no convolution"


def why_alone(root, node: fx.Node, wanted: Callable[[nn.Module], bool]) -> str:
    """Why a batch norm is in no chain; its call in a graph."""
    before = node.all_input_nodes[0]
    conv = module_of(root, before)
    if isinstance(conv, nn.ConvTranspose2d):
        return "follows a transposed convolution"
    if not isinstance(conv, nn.Conv2d):
        return NO_CONVOLUTION
    if why_not_conv(conv) or not wanted(conv):
        return "follows a convolution that is left"
    if only_user(before) is None:
        return "what it normalises is read elsewhere too"
    return "what its convolution reads may be written to before it"


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that uses it, if that is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """What is added to the value, which alone may be written to."""
    if node.op not in ("call_function", "call_method") or node.target not in ADDITIONS:
        return None
    if node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    if first is second or not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if second is value and may_write(None, node):
        return None
    return second if first is value else first


def _activation(root, node: fx.Node) -> str | None:
    if node.op == "call_module":
        return activation_of(module_of(root, node))
    _, *more = node.args
    options = {k: v for k, v in node.kwargs.items() if (k, v) != ("negative_slope", 0.01)}
    if any(type(a) is not bool for a in more) or options.keys() - {"inplace"}:
        return None
    names = ACTIVATION_METHODS if node.op == "call_method" else ACTIVATION_FUNCTIONS
    return names.get(node.target)


def _written_before(root, chain: list[fx.Node], last: fx.Node, residual=None) -> bool:
    """Whether what the chain reads may be written to before `last`.

    The call that replaces the chain stands there.
    """
    reads, node = {chain[0].args[0], residual}, chain[0].next
    while node is not last:
        if node not in chain and reads & set(node.all_input_nodes) and may_write(root, node):
            return True
        node = node.next
    return False


def may_write(root, node: fx.Node) -> bool:
    """Whether a node may write to its inputs."""
    module = module_of(root, node)
    if module is not None:
        known = type(module).__module__.startswith("torch.nn.")
        return getattr(module, "inplace", False) or not known
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return (
        bool(node.kwargs.get("inplace"))
        or any(a is True for a in node.args[1:])  # 1 == True
        or name.endswith("_")
        or name in ("setitem", "iadd", "isub", "imul", "itruediv")
    )


def fuse(root: nn.Module, graph: fx.Graph, chains: list[Chain]) -> None:
    """Each chain becomes one call, in place."""
    for chain in chains:
        first, last = chain.nodes[0], chain.nodes[-1]
        with graph.inserting_before(last):
            conv = graph.get_attr(first.target)
            bn = None if chain.bn is None else graph.get_attr(bn_target(root, chain))
            arguments = (conv, bn, chain.activation, first.args[0])
            if chain.residual is not None:
                arguments += (chain.residual,)
            call = graph.call_function(conv_bn_act, arguments)
        last.replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.erase_node(node)


def bn_target(root, chain: Chain) -> str:
    """The name of its batch norm."""
    return next(n.target for n in chain.nodes if module_of(root, n) is chain.bn)


class PooledBatchNorm(NamedTuple):
    """Batch norm, ReLU and max-pooling, each value used by the next alone."""

    bn: fx.Node
    relu: fx.Node
    pool: fx.Node


def find_pooled(root: nn.Module, graph: fx.Graph, chains: list[Chain]) -> list[PooledBatchNorm]:
    """Those whose batch norm no convolution takes in."""
    taken = {node for chain in chains for node in chain.nodes}
    found = []
    for bn in graph.nodes:
        module = module_of(root, bn)
        if bn in taken or type(module) is not nn.BatchNorm2d or why_not_batch_norm(module):
            continue
        relu = only_user(bn)
        pool = None if relu is None else only_user(relu)
        if pool is None or relu.op != "call_module" or pool.op != "call_module":
            continue
        is_relu = activation_of(module_of(root, relu)) == "relu"
        if is_relu and type(module_of(root, pool)) is nn.MaxPool2d:
            found.append(PooledBatchNorm(bn, relu, pool))
    return found


def fuse_pooled(graph: fx.Graph, found: list[PooledBatchNorm]) -> None:
    """Each becomes one call, in place."""
    for nodes in found:
        with graph.inserting_before(nodes.pool):
            modules = [graph.get_attr(node.target) for node in nodes]
            call = graph.call_function(bn_relu_pool, (*modules, nodes.bn.args[0]))
        nodes.pool.replace_all_uses_with(call)
        for node in reversed(nodes):
            graph.erase_node(node)
