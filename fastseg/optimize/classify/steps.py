"""The classes of modules and of the nodes of graphs, each found out once.

The patterns of fastseg.optimize.match are looked for among these steps.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastseg.optimize.classify.effects import (
    NOTHING_IS_KNOWN,
    READS,
    Effects,
    effects_of_call,
    effects_of_module,
    inplace_argument,
)
from fastseg.optimize.classify.eligible import (
    activation_of,
    has_hooks,
    own_activation,
    why_not_batch_norm,
    why_not_conv,
    why_not_pool,
    why_not_unpool,
)


class Kind(Enum):
    """What a node computes."""

    CONV = "a Conv2d"
    BATCH_NORM = "a batch norm"
    ACTIVATION = "an activation that ops end with"
    ADDITION = "the sum of two values"
    IDENTITY = "nothing"
    POOL = "a MaxPool2d"
    UNPOOL = "a MaxUnpool2d"
    AVERAGE = "the average over a map"
    INTERPOLATION = "one pixel made a map, or a map resized"
    DROPOUT = "a dropout"
    CONCATENATION = "maps concatenated along channels"
    SIZE = "the size of a value"
    TRANSPOSED_CONV = "a ConvTranspose2d"
    INSTANCE_NORM = "an InstanceNorm2d"
    OTHER = "anything else"


class Step(NamedTuple):
    """What a module, or the node of a graph, computes.

    Attributes:
        kind: the class of what it computes.
        module: the module itself or the one that the node calls, or None.
        name: the op's name for an activation, a batch norm's own among them; the mode of an
            interpolation; "" of others.
        why_not: the reason why no op can stand for it, or None.
        effects: what it returns and which memory it may write to.
        is_hooked: whether a call of the module is anything else than its class's forward.
    """

    kind: Kind
    module: nn.Module | None = None
    name: str = ""
    why_not: str | None = None
    effects: Effects = NOTHING_IS_KNOWN
    is_hooked: bool = False

    @property
    def is_op(self) -> bool:
        """Whether the module is one that ops are made of, which is never taken apart."""
        return self.module is not None and self.kind in _OPS


_OPS = (Kind.CONV, Kind.BATCH_NORM, Kind.ACTIVATION, Kind.IDENTITY)

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


class Steps(dict[nn.Module, Step]):
    """The steps of modules, each classified once.

    Args:
        model: the module all of whose modules are classified at once. Others, such as a slice of a
            Sequential that a forward makes, are when they are first asked for.
        left: modules for which no op may stand, each with the reason.
    """

    def __init__(self, model: nn.Module, left: Mapping[nn.Module, str]):
        super().__init__((module, step_of_module(module)) for module in model.modules())
        for module, reason in left.items():
            self[module] = self[module]._replace(why_not=self[module].why_not or reason)

    def __missing__(self, module: nn.Module) -> Step:
        step = self[module] = step_of_module(module)
        return step

    def of_node(self, root: nn.Module, node: fx.Node) -> Step:
        """The step of a node in the graph of root's forward."""
        if node.op == "call_module":
            return _step_of_module_call(self[root.get_submodule(node.target)], node)
        if node.op not in ("call_function", "call_method"):
            return _READING
        kind, name = _kind_and_name(node)
        return Step(kind, name=name, effects=effects_of_call(node))


_READING = Step(Kind.OTHER, effects=READS)


def step_of_module(module: nn.Module) -> Step:
    """The step of a module, whatever it is called with."""
    hooked = has_hooks(module)
    kind, name, why_not = _of_module(module, hooked)
    has_op = kind in (Kind.ACTIVATION, Kind.IDENTITY) or (
        kind is Kind.BATCH_NORM and why_not is None
    )
    return Step(kind, module, name, why_not, effects_of_module(module, has_op), hooked)


def _of_module(module: nn.Module, hooked: bool) -> tuple[Kind, str, str | None]:
    """The kind, the name and the reason why not of a module."""
    if isinstance(module, nn.Conv2d):
        return Kind.CONV, "", why_not_conv(module)
    if isinstance(module, nn.BatchNorm2d):
        why_not = why_not_batch_norm(module)
        return Kind.BATCH_NORM, "" if why_not else own_activation(module), why_not
    if isinstance(module, nn.ConvTranspose2d):
        return Kind.TRANSPOSED_CONV, "", "fastseg has no transposed convolution"
    if isinstance(module, nn.MaxPool2d):
        plain = type(module) is nn.MaxPool2d and not hooked
        return Kind.POOL if plain else Kind.OTHER, "", why_not_pool(module)
    if isinstance(module, nn.MaxUnpool2d):
        return Kind.UNPOOL, "", why_not_unpool(module)
    if hooked:
        return Kind.OTHER, "", None
    activation = activation_of(module)
    if activation is not None:
        return Kind.ACTIVATION if activation else Kind.IDENTITY, activation, None
    if type(module) is nn.InstanceNorm2d:
        return Kind.INSTANCE_NORM, "", None
    if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
        return Kind.AVERAGE, "", None
    return Kind.DROPOUT if type(module) in DROPOUTS else Kind.OTHER, "", None


def _step_of_module_call(step: Step, node: fx.Node) -> Step:
    """The step of a module, called as the node calls it."""
    if (len(node.args) == 1 and not node.kwargs) or step.kind is Kind.POOL:
        return step
    if step.kind in (Kind.CONV, Kind.BATCH_NORM):
        return step._replace(why_not="is called with more than a map")
    return step._replace(kind=Kind.OTHER, name="", why_not=None)


def _kind_and_name(node: fx.Node) -> tuple[Kind, str]:
    """The kind and the name of a node that calls a function or a method."""
    if node.target in ADDITIONS:
        two = not node.kwargs and len(node.args) == 2
        return Kind.ADDITION if two else Kind.OTHER, ""
    activation = _activation(node)
    if activation:
        return Kind.ACTIVATION, activation
    if node.target is F.interpolate:
        mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
        return Kind.INTERPOLATION, mode if isinstance(mode, str) else ""
    if node.target in CONCATENATIONS:
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return Kind.CONCATENATION if dim == 1 else Kind.OTHER, ""
    return Kind.SIZE if _is_size(node) else Kind.OTHER, ""


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
    """Whether a node asks for a size, or takes a part of a size, or of anything."""
    if node.op == "call_method":
        return node.target == "size"
    shape = node.target is getattr and node.args[1] == "shape"
    return shape or node.target is operator.getitem
