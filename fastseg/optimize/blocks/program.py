"""The new forward of a block: a graph as code, and when that may run."""

from __future__ import annotations

import copy
import importlib
import operator
from types import ModuleType

import torch
from torch import Tensor, fx, nn
from torch._C import _get_tracing_state
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.compiler import is_compiling

from fastseg.optimize.blocks.guard import Guard
from fastseg.optimize.classify.names import IN_PLACE_OPERATORS

TENSORS = frozenset({Tensor, FakeTensor, FunctionalTensor})
"""Classes of the tensors that a stand-in stood for."""


class Program:
    """A graph's code, called as ``function(block, *arguments)``, with a guard.

    Args:
        source: code that defines a function `forward`.
        names: what that function reads as globals, by name.
        arguments: the number of arguments beside the block.
        asks: what its traces have asked: "arguments" if these must be tensors; "tracing" and
            "compiling" if the block's own forward is to run in these contexts.
        guard: the guard of the block.
        trains: whether it has something for training too; else the block's own forward is shorter.
        training: whether it is for the block in training alone, or in evaluation alone, or None.
    """

    def __init__(
        self,
        source: str,
        names: dict,
        arguments: int,
        asks: frozenset[str],
        guard: Guard,
        trains: bool,
        training: bool | None = None,
    ):
        self.source, self.names, self.arguments = source, names, arguments
        self.asks, self.guard, self.trains, self.training = asks, guard, trains, training
        self.tensors_only = "arguments" in asks
        namespace = dict(names)
        exec(compile(source, "<fastseg.optimize_>", "exec"), namespace)
        self.function = namespace["forward"]

    @classmethod
    def of(
        cls,
        graph: fx.Graph,
        asks: frozenset[str],
        guard: Guard,
        trains: bool,
        training: bool | None = None,
    ) -> Program:
        """The program of a graph."""
        guard.compile()
        for node in graph.nodes:
            node.target = _IN_PLACE.get(node.target, node.target)
        graph.lint()
        code = graph.python_code("self")
        arguments = sum(node.op == "placeholder" for node in graph.nodes)
        source = _with_children_at_once(code.src, graph, guard.block)
        return cls(source, dict(code.globals), arguments, asks, guard, trains, training)

    def fits(self, block: nn.Module, arguments: tuple) -> bool:
        """Whether the program does with these arguments what the block's own forward does."""
        # A trace, which torch.jit makes with gradients, is compared with one without.
        if (
            not self.trains
            and block.training
            and (torch.is_grad_enabled() or _get_tracing_state() is not None)
        ):
            return False
        if len(arguments) != self.arguments or self.guard.block is not block:
            return False
        if self.training is not None and block.training is not self.training:
            return False
        if self.asks and self._is_in_asked_context():
            return False
        for a in arguments:
            if type(a) in TENSORS:
                continue
            if isinstance(a, fx.Proxy):  # torch.fx has replaced how modules are called
                return True
            if self.tensors_only or isinstance(a, Tensor):
                return False
        return self.guard.holds()

    def _is_in_asked_context(self) -> bool:
        return ("compiling" in self.asks and is_compiling()) or (
            "tracing" in self.asks and _get_tracing_state() is not None
        )

    def why_not(self, block: nn.Module) -> str | None:
        """Why the program fits no arguments, or None."""
        if self.guard.block is not block:
            return "is a copy that shares its attributes"
        return self.guard.broken()

    def __deepcopy__(self, memo):
        twin = object.__new__(Program)
        twin.__dict__.update(self.__dict__, guard=copy.deepcopy(self.guard, memo))
        return twin

    def __reduce__(self):
        modules = {k: v.__name__ for k, v in self.names.items() if isinstance(v, ModuleType)}
        others = {k: v for k, v in self.names.items() if k not in modules}
        rest = self.arguments, self.asks, self.guard, self.trains, self.training
        return _unpickle, (self.source, modules, others, *rest)


def _with_children_at_once(source: str, graph: fx.Graph, block: nn.Module) -> str:
    """A graph's code, which finds modules past nn.Module.__getattr__: that takes a microsecond."""
    modules = dict(block.named_modules())
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module") or node.target not in modules:
            continue
        slow = fast = "self"
        for name in node.target.split("."):
            slow = f"{slow}.{name}" if name.isidentifier() else f'getattr({slow}, "{name}")'
            fast += f"._modules[{name!r}]"
        end = "\n" if node.op == "get_attr" else "("
        source = source.replace(f" = {slow}{end}", f" = {fast}{end}")
    return source


def _unpickle(source: str, modules: dict[str, str], others: dict, *rest) -> Program:
    names = {k: importlib.import_module(v) for k, v in modules.items()}
    return Program(source, {**names, **others}, *rest)


def _in_place(name: str):
    operation = getattr(operator, name)

    def function(a, b):
        return operation(a, b)

    function.__name__ = function.__qualname__ = name
    return function


# torch.fx writes `a += b` for these, which would rebind a number that is read again later.
_IN_PLACE = {getattr(operator, name): _in_place(name) for name in IN_PLACE_OPERATORS}
# The code of a graph and pickle look for them here by their names.
globals().update({function.__name__: function for function in _IN_PLACE.values()})
