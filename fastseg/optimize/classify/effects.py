"""What a node of a graph returns, and which memory it may write to.

What is not known returns anything, may be a view of all that it was given, and may write to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx, nn

from fastseg.optimize.classify.names import FRESH, IN_PLACE_OPERATORS, MAYBE_VIEWS, WRITES

_FRESH_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.activation.Sigmoid,
    nn.modules.activation.Tanh,
    nn.modules.activation.GELU,
    nn.Softmax,
    nn.Softplus,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.Linear,
    nn.Upsample,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.LeakyReLU,
    nn.ELU,
    nn.Mish,
)
_MAYBE_VIEW_MODULES = (
    nn.Identity,
    nn.modules.dropout._DropoutNd,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.modules.padding._ConstantPadNd,
)

OF_TORCH = ("torch", "_operator", "math")


class Effects(NamedTuple):
    """What a node does beside computing a value.

    Attributes:
        returns_tensor: whether it is known to return one tensor, if it was given tensors and
            numbers.
        may_be_view: whether what it returns may share memory with what it was given.
        may_write: whether it may write to its inputs.
    """

    returns_tensor: bool
    may_be_view: bool
    may_write: bool


NOTHING_IS_KNOWN = Effects(False, True, True)
"""Effects of a call of which nothing is known."""

READS = Effects(False, True, False)
"""Effects of a placeholder, of an attribute that is read and of the output."""


def effects_of_module(module: nn.Module, has_op: bool) -> Effects:
    """The effects of calling a module.

    Args:
        module: the module.
        has_op: whether it is a batch norm or an activation that an op stands for.
    """
    of_torch = type(module).__module__.startswith("torch.nn.")
    fresh = has_op or (of_torch and isinstance(module, _FRESH_MODULES))
    maybe_view = of_torch and isinstance(module, _MAYBE_VIEW_MODULES)
    in_place = bool(getattr(module, "inplace", False))
    return Effects(
        fresh or maybe_view,
        isinstance(module, nn.Identity) or not fresh or in_place,
        not (of_torch or has_op) or in_place,
    )


def effects_of_call(node: fx.Node) -> Effects:
    """The effects of a node that calls a function or a method."""
    name = name_of(node)
    if not name:
        return NOTHING_IS_KNOWN
    in_place = _is_in_place(node, name)
    writes = in_place or name in WRITES or "out" in node.kwargs
    return Effects(
        in_place or name in FRESH or name in MAYBE_VIEWS, name not in FRESH or writes, writes
    )


def name_of(node: fx.Node) -> str:
    """The name of the function, method or attribute that a node calls or reads.

    It is "" where the function is not torch's or an operator, or the method is no tensor's.
    """
    if node.op == "call_method":
        return node.target if hasattr(torch.Tensor, node.target) else ""
    if node.target is getattr:
        return node.args[1]
    home = getattr(node.target, "__module__", None) or "torch"
    return getattr(node.target, "__name__", "") if home.partition(".")[0] in OF_TORCH else ""


def is_operator(node: fx.Node) -> bool:
    """Whether a node calls a function of Python's operator module."""
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"


def _is_in_place(node: fx.Node, name: str) -> bool:
    return (
        bool(inplace_argument(node))
        or (name.endswith("_") and not is_operator(node))
        or (is_operator(node) and name in IN_PLACE_OPERATORS)
        or (name.startswith("__i") and name.endswith("__"))
    )


def inplace_argument(node: fx.Node):
    """The value of a function's argument `inplace`, or False if the function has none."""
    code = getattr(node.target, "__code__", None)  # functions of torch.nn.functional are Python
    names = () if code is None else code.co_varnames[: code.co_argcount]
    if "inplace" in names and names.index("inplace") < len(node.args):
        return node.args[names.index("inplace")]
    return node.kwargs.get("inplace", False)
