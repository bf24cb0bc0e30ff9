"""Stand-ins for the values of a forward while it is traced.

torch.fx records what is done with them. What it cannot record, such as a question for a value's
type, is answered where the answer is certain, or refused.
"""

from __future__ import annotations

import operator
import sys
from enum import Enum

from torch import Tensor, fx, nn

from fastseg.optimize.classify.effects import is_operator
from fastseg.optimize.classify.names import NEVER_NONE
from fastseg.optimize.trace.origins import is_others


class NotTraceable(Exception):
    """Why a forward is left as it is."""


CANNOT = "cannot trace its forward, which"
"""How reasons begin that are the stand-ins'."""


class Kind(Enum):
    """What is known of a value."""

    ARGUMENT = "what the forward is called with, or made of it: a tensor, if it matters"
    PARAMETER = "an nn.Parameter"
    TENSOR = "a tensor"
    VALUE = "of torch's ops, never None"
    UNKNOWN = "anything"


def kind_of(root: nn.Module, node: fx.Node, returns_tensor: bool) -> Kind:
    """The kind of a node's value.

    Args:
        root: the module whose forward it is of.
        node: the node.
        returns_tensor: whether what it calls returns a tensor for tensors and numbers.
    """
    if node.op == "placeholder":
        return Kind.ARGUMENT
    if node.op == "get_attr":
        module, _, name = node.target.rpartition(".")
        is_parameter = name in root.get_submodule(module).__dict__["_parameters"]
        return Kind.PARAMETER if is_parameter else Kind.TENSOR
    kinds = {n.meta["kind"] for n in node.all_input_nodes}
    if returns_tensor:
        # Of sizes, operators make sizes.
        if not is_operator(node) or kinds & {Kind.PARAMETER, Kind.TENSOR}:
            return Kind.TENSOR
        return Kind.ARGUMENT if Kind.ARGUMENT in kinds else Kind.VALUE
    if node.op == "call_module" or Kind.UNKNOWN in kinds:
        return Kind.UNKNOWN
    return (
        Kind.ARGUMENT if node.target is operator.getitem and Kind.ARGUMENT in kinds else Kind.VALUE
    )


class StandIn(fx.Proxy):
    """A value of the forward; ``+=`` and its like are in place, as torch's are."""

    def __getattr__(self, name: str) -> Attribute:
        if self.kind in (Kind.VALUE, Kind.UNKNOWN):  # it may be of any class
            if name.startswith("__"):
                raise AttributeError(name)
            return Attribute(self, name)
        if not hasattr(Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        if name not in NEVER_NONE and not callable(getattr(Tensor, name)):
            raise NotTraceable(f"{CANNOT} reads {name} of tensors")
        return Attribute(self, name)

    @property
    def kind(self) -> Kind:
        """What is known of it."""
        return self.node.meta["kind"]

    @property
    def __class__(self):
        # Torch's ops ask by isinstance() too, and want to hear of no tensor.
        if not self.tracer.witness.is_asked(sys._getframe(1)):
            return type(self)
        if self.kind is Kind.PARAMETER:
            return nn.Parameter
        self.tracer.is_asked_for(self.node)
        return Tensor

    def __setattr__(self, name: str, value) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise NotTraceable(f"{CANNOT} sets attributes of tensors")
        object.__setattr__(self, name, value)

    def __setitem__(self, key, value) -> None:
        raise NotTraceable(f"{CANNOT} writes to parts of tensors")

    def __delitem__(self, key) -> None:
        raise NotTraceable(f"{CANNOT} deletes items of what it is given")

    def __call__(self, *args, **kwargs):  # noqa: D102
        raise NotTraceable(f"{CANNOT} calls a value that it has computed")

    def __len__(self) -> int:
        raise NotTraceable(f"{CANNOT} asks for the length of what it is given")

    def __repr__(self) -> str:
        if is_others(sys._getframe(1)):
            raise NotTraceable(f"{CANNOT} makes text of tensors or sizes")
        return super().__repr__()

    def __format__(self, spec: str) -> str:
        raise NotTraceable(f"{CANNOT} makes text of tensors or sizes")


class Attribute(StandIn):
    """``value.name``, a node of the graph unless it is called as a method."""

    def __init__(self, root: StandIn, attr: str):
        self.root, self.attr, self.tracer, self._node = root, attr, root.tracer, None

    @property
    def node(self) -> fx.Node:
        """That of getattr(value, name)."""
        if self._node is None:
            arguments = (self.root, self.attr)
            made = self.tracer.create_proxy("call_function", getattr, arguments, {})
            self._node = made.node
        return self._node

    def __call__(self, *args, **kwargs) -> StandIn:  # noqa: D102
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def _in_place(operation):
    def method(self, other):
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name in (
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior",
    "ixor", "ilshift", "irshift",
):  # fmt: skip
    setattr(StandIn, f"__{_name}__", _in_place(getattr(operator, _name)))


def is_stand_in(value) -> bool:
    """isinstance() asks for a class, which a stand-in may refuse to tell."""
    return issubclass(type(value), fx.Proxy)


def any_stand_in(types) -> bool:
    """Of the types that an op of torch was called with."""
    return any(issubclass(t, fx.Proxy) for t in types)
