"""Calls in a graph that reduce logits to the numbers of classes or to their cross-entropy."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastseg.optimize.blocks.head_calls import Loss, argmax_of_upsampled, cross_entropy_of_upsampled
from fastseg.optimize.classify.eligible import HOOKED
from fastseg.optimize.classify.steps import Step
from fastseg.optimize.match.indices import bound

ARGMAX, CROSS_ENTROPY = "fastseg.upsample_argmax", "fastseg.upsample_cross_entropy"
"""What readers become, in the report."""

_ALIASES = {"axis": "dim", "keepdims": "keepdim"}
"""numpy's names of arguments, which torch takes too."""


class Reader(NamedTuple):
    """A call that reduces logits.

    Attributes:
        node: the call.
        name: its name in the report.
        logits: what it reads.
        nodes: the call and what takes its results one by one, in their order.
        results: those of the nodes whose value the op returns.
        becomes: what it becomes, in the report.
        keepdim: whether classes have a dimension of one in the result.
        why_not: why no op stands for it, or None.
    """

    node: fx.Node
    name: str
    logits: fx.Node
    nodes: list[fx.Node]
    results: list[fx.Node]
    becomes: str
    keepdim: bool = False
    why_not: str | None = None

    def also_reads(self, nodes: list[fx.Node]) -> bool:
        """Whether nodes are read otherwise than as its logits."""
        given = loss_arguments(self.node) if self.becomes == CROSS_ENTROPY else {}
        others: list[fx.Node] = []
        fx.map_arg({k: v for k, v in given.items() if k != "input"}, others.append)
        return not {*others}.isdisjoint(nodes)

    def call(self, graph: fx.Graph, logits: fx.Node, upsample, may_change: bool) -> fx.Node:
        """Makes the op's call in a graph.

        Args:
            graph: the graph.
            logits: the logits that are upsampled.
            upsample: the module or the arguments that they are upsampled by.
            may_change: whether the logits may be written to later.
        """
        if self.becomes == ARGMAX:
            arguments = logits, upsample, self.keepdim
            return graph.call_function(argmax_of_upsampled, arguments)
        given = loss_arguments(self.node)
        if self.node.op == "call_module":
            loss = graph.get_attr(self.node.target)
        else:
            loss = Loss(**{name: given[name] for name in Loss._fields})
        arguments = logits, upsample, given["target"], loss, may_change
        return graph.call_function(cross_entropy_of_upsampled, arguments)


def reader_of(node: fx.Node, step: Step) -> Reader | None:
    """The reader that a node is, or None."""
    if node.target in (torch.argmax, torch.max) or (
        node.op == "call_method" and node.target in ("argmax", "max")
    ):
        return _reader_of_classes(node)
    if type(step.module) is nn.CrossEntropyLoss or node.target is F.cross_entropy:
        logits = loss_arguments(node).get("input")
        if isinstance(logits, fx.Node):
            name = "F.cross_entropy" if step.module is None else "CrossEntropyLoss"
            why_not = HOOKED if step.is_hooked else None
            return Reader(node, name, logits, [node], [node], CROSS_ENTROPY, why_not=why_not)
    return None


def loss_arguments(node: fx.Node) -> Mapping:
    """The arguments of a call of cross-entropy by name, none if they do not fit."""
    if node.op == "call_module":
        return bound(nn.CrossEntropyLoss.forward, None, *node.args, **node.kwargs)
    return bound(F.cross_entropy, *node.args, **node.kwargs)


def _reader_of_classes(node: fx.Node) -> Reader | None:
    """The reader that finds the largest logits, or None where it reads no logits alone."""
    name = node.target if node.op == "call_method" else node.target.__name__
    given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False))
    given |= {_ALIASES.get(k, k): v for k, v in node.kwargs.items()}
    logits, dim, keepdim = (
        given.pop("input", None),
        given.pop("dim", None),
        given.pop("keepdim", False),
    )
    if given or len(node.args) > 3 or not isinstance(logits, fx.Node) or isinstance(dim, fx.Node):
        return None
    nodes = results = [node]
    why_not = None
    if type(dim) is not int or dim not in (1, -3):
        why_not = "is not of the classes, dimension 1"
    elif type(keepdim) is not bool:
        why_not = "keepdim is computed"
    elif name == "max":
        taken = [user for user in node.users if not _is_unused_part(user)]
        results = [user for user in taken if _takes_indices(user)]
        nodes = [node, *node.users]
        if not results or len(results) < len(taken):
            why_not = "the largest logits are read too"
    return Reader(node, name, logits, nodes, results, ARGMAX, keepdim, why_not)


def _takes_indices(node: fx.Node) -> bool:
    """Whether a node takes the second of two results."""
    part = node.args[1] if node.target in (operator.getitem, getattr) else None
    return part in (1, -1) if node.target is operator.getitem else part == "indices"


def _is_unused_part(node: fx.Node) -> bool:
    return node.target in (operator.getitem, getattr) and not node.users
