"""What each node of a graph is, found out once; patterns are looked for among these."""

from __future__ import annotations

import operator
from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastseg.optimize.classify.effects import inplace_argument, module_of
from fastseg.optimize.classify.eligible import (
    activation_of,
    has_hooks,
    is_batch_norm,
    own_activation,
    why_not_batch_norm,
    why_not_conv,
)


class Kind(Enum):
    """What a node computes."""

    CONV = "a Conv2d"
    BATCH_NORM = "a batch norm"
    ACTIVATION = "an activation that ops end with"
    ADDITION = "the sum of two values"
    IDENTITY = "nothing"
    POOL = "a MaxPool2d"
    AVERAGE = "the average over a map"
    INTERPOLATION = "one pixel made a map, or a map resized"
    DROPOUT = "a dropout"
    CONCATENATION = "maps concatenated along channels"
    SIZE = "the size of a value"
    TRANSPOSED_CONV = "a ConvTranspose2d"
    OTHER = "anything else"


class Step(NamedTuple):
    """A node.

    Attributes:
        kind: what it computes.
        module: that it calls, or None.
        name: the op's name for an activation, a batch norm's own among them; the mode of an
            interpolation; "" of others.
        why_not: why no op can stand for it, or None.
    """

    kind: Kind
    module: nn.Module | None = None
    name: str = ""
    why_not: str | None = None


ACTIVATIONS = {
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu: "relu",
    F.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.leaky_relu: "leaky_relu",
}
ACTIVATION_METHODS = {"relu": "relu", "relu_": "relu"}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
DROPOUTS = (nn.Dropout, nn.Dropout2d)


def classify(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, Step]:
    """The step of each node."""
    return {node: _step(root, node) for node in graph.nodes}


def _step(root: nn.Module, node: fx.Node) -> Step:
    module = module_of(root, node)
    if module is not None:
        plain = len(node.args) == 1 and not node.kwargs
        step = _of_module(module)
        if step.kind in (Kind.CONV, Kind.BATCH_NORM) and not plain:
            return step._replace(why_not="is called with more than a map")
        return step if plain or step.kind is Kind.POOL else Step(Kind.OTHER, module)
    if node.op not in ("call_function", "call_method"):
        return Step(Kind.OTHER)
    if node.target in ADDITIONS:
        two = not node.kwargs and len(node.args) == 2
        return Step(Kind.ADDITION if two else Kind.OTHER)
    name = _activation(node)
    if name:
        return Step(Kind.ACTIVATION, name=name)
    if node.target is F.interpolate:
        mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
        return Step(Kind.INTERPOLATION, name=mode if isinstance(mode, str) else "")
    if node.target in CONCATENATIONS:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return Step(Kind.CONCATENATION if dim == 1 else Kind.OTHER)
    return Step(Kind.SIZE if _is_size(node) else Kind.OTHER)


def _of_module(module: nn.Module) -> Step:
    if isinstance(module, nn.Conv2d):
        return Step(Kind.CONV, module, why_not=why_not_conv(module))
    if is_batch_norm(module):
        why_not = why_not_batch_norm(module)
        return Step(Kind.BATCH_NORM, module, "" if why_not else own_activation(module), why_not)
    if isinstance(module, nn.ConvTranspose2d):
        return Step(Kind.TRANSPOSED_CONV, module)
    activation = activation_of(module)
    if activation is not None:
        return Step(Kind.ACTIVATION if activation else Kind.IDENTITY, module, activation)
    if has_hooks(module):
        return Step(Kind.OTHER, module)
    if type(module) is nn.MaxPool2d:
        return Step(Kind.POOL, module)
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return Step(Kind.AVERAGE, module)
    return Step(Kind.DROPOUT if type(module) in DROPOUTS else Kind.OTHER, module)


def _activation(node: fx.Node) -> str | None:
    """The op's name for the function or method that a node calls."""
    if type(inplace_argument(node)) is not bool:
        return None
    options = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "input")}
    more = [a for a in node.args[1:] if type(a) is not bool]
    if node.target is F.leaky_relu and (more == [0.01] or options == {"negative_slope": 0.01}):
        more, options = [], {}
    if more or options or not node.args:
        return None
    names = ACTIVATION_METHODS if node.op == "call_method" else ACTIVATIONS
    return names.get(node.target)


def _is_size(node: fx.Node) -> bool:
    """Whether it asks for a size, or takes a part of one, or of anything."""
    if node.op == "call_method":
        return node.target == "size"
    shape = node.target is getattr and node.args[1] == "shape"
    return shape or node.target is operator.getitem
