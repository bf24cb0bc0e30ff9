"""What a node of a graph returns, and which memory it may write to.

What is not known returns anything, may be a view of all that it was given, and may write to it.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from fastseg.optimize.classify.eligible import is_known
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


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    return root.get_submodule(node.target) if node.op == "call_module" else None


def is_of_torch(function) -> bool:
    """Whether a function is torch's or an operator."""
    return (getattr(function, "__module__", None) or "torch").partition(".")[0] in OF_TORCH


def name_of(node: fx.Node) -> str:
    """That of the function or method that it calls, or of the attribute; "" of one unknown."""
    if node.op == "call_method":
        return node.target if hasattr(torch.Tensor, node.target) else ""
    if node.target is getattr:
        return node.args[1]
    if node.op != "call_function" or not is_of_torch(node.target):
        return ""
    return getattr(node.target, "__name__", "")


def _is_fresh(module: nn.Module) -> bool:
    """Whether a module returns one new tensor, where it is not in place."""
    return is_known(module) or (_is_torchs(module) and isinstance(module, _FRESH_MODULES))


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def returns_tensor(root: nn.Module, node: fx.Node) -> bool:
    """Whether it is known to return one tensor, if what it was given are tensors and numbers."""
    module = module_of(root, node)
    if module is not None:
        may_be_view = _is_torchs(module) and isinstance(module, _MAYBE_VIEW_MODULES)
        return _is_fresh(module) or may_be_view
    return name_of(node) in FRESH | MAYBE_VIEWS or (bool(name_of(node)) and _in_place(node))


def may_be_view(root: nn.Module, node: fx.Node) -> bool:
    """Whether what it returns may share memory with what it was given."""
    module = module_of(root, node)
    if module is not None:
        is_identity = isinstance(module, nn.Identity)
        return is_identity or not _is_fresh(module) or getattr(module, "inplace", False)
    return name_of(node) not in FRESH or may_write(root, node)


def may_write(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node may write to its inputs."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    module = module_of(root, node)
    if module is not None:
        known = _is_torchs(module) or is_known(module)
        return not known or bool(getattr(module, "inplace", False))
    name = name_of(node)
    return not name or name in WRITES or "out" in node.kwargs or _in_place(node)


def is_operator(node: fx.Node) -> bool:
    """Whether it calls a function of Python's operator module."""
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"


def _in_place(node: fx.Node) -> bool:
    name = name_of(node)
    return (
        bool(inplace_argument(node))
        or (name.endswith("_") and not is_operator(node))
        or (is_operator(node) and name in IN_PLACE_OPERATORS)
        or (name.startswith("__i") and name.endswith("__"))
    )


def inplace_argument(node: fx.Node):
    """The value of a function's argument `inplace`, False of one that has none."""
    code = getattr(node.target, "__code__", None)  # torch.nn.functional's are Python
    names = () if code is None else code.co_varnames[: code.co_argcount]
    if "inplace" in names and names.index("inplace") < len(node.args):
        return node.args[names.index("inplace")]
    return node.kwargs.get("inplace", False)
