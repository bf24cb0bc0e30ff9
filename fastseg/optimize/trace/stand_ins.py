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
from fastseg.optimize.classify.names import IN_PLACE_OPERATORS, NEVER_NONE
from fastseg.optimize.trace.origins import is_others


class NotTraceable(Exception):
    """Why a forward is left as it is."""


CANNOT = "cannot trace its forward, which"
"""Words with which the stand-ins' reasons begin."""


class ValueKind(Enum):
    """What is known of a value."""

    ARGUMENT = "what the forward is called with, or made of it: a tensor, if it matters"
    PARAMETER = "an nn.Parameter"
    TENSOR = "a tensor"
    OF_TORCH = "a value of torch's ops, never None"
    UNKNOWN = "anything"


def value_kind(root: nn.Module, node: fx.Node, returns_tensor: bool) -> ValueKind:
    """The kind of a node's value.

    Args:
        root: the module whose forward is traced.
        node: the node.
        returns_tensor: whether what the node calls returns a tensor for tensors and numbers.
    """
    if node.op == "placeholder":
        return ValueKind.ARGUMENT
    if node.op == "get_attr":
        module, _, name = node.target.rpartition(".")
        is_parameter = name in root.get_submodule(module).__dict__["_parameters"]
        return ValueKind.PARAMETER if is_parameter else ValueKind.TENSOR
    kinds = {n.meta["kind"] for n in node.all_input_nodes}
    if returns_tensor:
        # Operators make sizes of sizes.
        if not is_operator(node) or kinds & {ValueKind.PARAMETER, ValueKind.TENSOR}:
            return ValueKind.TENSOR
        return ValueKind.ARGUMENT if ValueKind.ARGUMENT in kinds else ValueKind.OF_TORCH
    if node.op == "call_module" or ValueKind.UNKNOWN in kinds:
        return ValueKind.UNKNOWN
    is_part = node.target is operator.getitem and ValueKind.ARGUMENT in kinds
    return ValueKind.ARGUMENT if is_part else ValueKind.OF_TORCH


class StandIn(fx.Proxy):
    """A value of the forward; ``+=`` and its like write in place, as torch's do."""

    def __getattr__(self, name: str) -> Attribute:
        if self.kind in (ValueKind.OF_TORCH, ValueKind.UNKNOWN):  # the value may be of any class
            if name.startswith("__"):
                raise AttributeError(name)
            return Attribute(self, name)
        if not hasattr(Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        if name not in NEVER_NONE and not callable(getattr(Tensor, name)):
            raise NotTraceable(f"{CANNOT} reads {name} of tensors")
        return Attribute(self, name)

    @property
    def kind(self) -> ValueKind:
        """What is known of the value."""
        return self.node.meta["kind"]

    @property
    def __class__(self):
        # Torch's ops ask by isinstance() too, and want to hear of no tensor.
        if not self.tracer.witness.is_asked(sys._getframe(1)):
            return type(self)
        if self.kind is ValueKind.PARAMETER:
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
    """The attribute of a value, a node of the graph unless it is called as a method."""

    def __init__(self, root: StandIn, attr: str):
        self.root, self.attr, self.tracer, self._node = root, attr, root.tracer, None

    @property
    def node(self) -> fx.Node:
        """The node of getattr(value, name)."""
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


for _name in IN_PLACE_OPERATORS:
    setattr(StandIn, f"__{_name}__", _in_place(getattr(operator, _name)))


def is_stand_in(value) -> bool:
    """Whether a value is a stand-in, whose class isinstance() would ask for and may not be told."""
    return issubclass(type(value), fx.Proxy)


def any_stand_in(types) -> bool:
    """Whether a stand-in is among the types that an op of torch was called with."""
    return any(issubclass(t, fx.Proxy) for t in types)
