"""One run of a module's forward with stand-ins for its tensors, by torch.fx."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fastseg.optimize.classify.steps import Step, Steps
from fastseg.optimize.trace.stand_ins import (
    CANNOT,
    NotTraceable,
    StandIn,
    ValueKind,
    is_stand_in,
    value_kind,
)
from fastseg.optimize.trace.witness import Witness

OF_OPS = ("torch.nn.", "fastseg.nn.")
"""Prefixes of the names of files whose modules are torch's own or fastseg's."""


class BlockTracer(fx.Tracer):
    """A tracer that classifies each node as it is made, into ``node.meta["step"]``.

    Other optional arguments of the forward have their defaults; children are calls.

    Args:
        steps: the steps of the model's modules.
        inline: tells by its step whether a child's forward becomes part of the graph.
        witness: the witness of the run.
        given: the names of the optional arguments that the forward is given.

    Attributes:
        asked_for: the nodes of whose values the forward has asked the type.
        inlined: the children whose forwards are part of the graph.
    """

    proxy_buffer_attributes = True

    def __init__(
        self,
        steps: Steps,
        inline: Callable[[Step], bool],
        witness: Witness,
        given: tuple[str, ...] = (),
    ):
        super().__init__()
        self.given = given
        self.steps, self.inline, self.witness = steps, inline, witness
        self.context, self.thread = _context(), threading.get_ident()
        self.asked_for: set[fx.Node] = set()
        self.inlined: list[nn.Module] = []

    def is_asked_for(self, node: fx.Node) -> None:
        """Notes that a value must be a tensor: the forward asks, and is told that it is one.

        Arguments and what modules return may be tensors.

        Raises:
            NotTraceable: it is another value.
        """
        if node.meta["kind"] is ValueKind.OF_TORCH or (
            node.meta["kind"] is ValueKind.UNKNOWN and node.op != "call_module"
        ):
            raise NotTraceable("its forward asks for the type of a value that it has computed")
        self.asked_for.add(node)

    def create_node(self, *arguments, **options):  # noqa: D102
        if _context() != self.context:
            raise NotTraceable("its forward changes the gradient mode or autocast")
        node = super().create_node(*arguments, **options)
        step = self.steps.of_node(self.root, node)
        node.meta["step"] = step
        if node.op != "output":
            node.meta["kind"] = value_kind(self.root, node, step.effects.returns_tensor)
        return node

    def create_proxy(self, *arguments, **options):  # noqa: D102
        with self.witness.looking_away():
            return super().create_proxy(*arguments, **options)

    def create_arg(self, a):  # noqa: D102
        if is_stand_in(a):
            return a.node
        if isinstance(a, Tensor):
            if a not in self.tensor_attrs and not self._is_kept(a):
                raise NotTraceable("its forward makes tensors")
        elif type(a) is OrderedDict:
            pairs = self.create_arg([(k, v) for k, v in a.items()])
            return self.create_node("call_function", OrderedDict, (pairs,), {})
        elif isinstance(a, (tuple, list, dict)):
            if type(a) not in (tuple, list, dict, torch.Size) and not hasattr(a, "_fields"):
                raise NotTraceable(f"its forward makes a {type(a).__name__}")
        elif dataclasses.is_dataclass(a) and not isinstance(a, type):
            raise NotTraceable(f"its forward makes a {type(a).__name__}")
        return super().create_arg(a)

    def _is_kept(self, t: Tensor) -> bool:
        return any(t is kept for kept in (*self.root.parameters(), *self.root.buffers()))

    def proxy(self, node: fx.Node) -> StandIn:  # noqa: D102
        return StandIn(node, self)

    def to_bool(self, obj) -> bool:  # noqa: D102
        raise NotTraceable(f"{CANNOT} decides by values or sizes of tensors")

    def iter(self, obj):  # noqa: D102
        raise NotTraceable(f"{CANNOT} goes through what it is given item by item")

    def keys(self, obj):  # noqa: D102
        raise NotTraceable(f"{CANNOT} goes through what it is given item by item")

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:  # noqa: D102
        if self.inline(self.steps[m]):
            self.inlined.append(m)
            return False
        return True

    def call_module(self, m, forward, args, kwargs):  # noqa: D102
        if threading.get_ident() != self.thread:  # another thread's models run as they are
            return forward(*args, **kwargs)
        others = not self.inline(self.steps[m]) and not type(m).__module__.startswith(OF_OPS)
        if others and any(isinstance(a, (list, dict)) for a in (*args, *kwargs.values())):
            raise NotTraceable("its forward hands a list to a module, which may change it")
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr, attr_val, parameter_proxy_cache):  # noqa: D102
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def path_of_module(self, mod: nn.Module) -> str:  # noqa: D102
        try:
            return super().path_of_module(mod)
        except NameError:  # a slice of a Sequential is none of the root's modules, its parts are
            if self.inline(self.steps[mod]):
                return ""
            raise NotTraceable("its forward calls a module that is none of its own") from None

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):  # noqa: D102
        required = []
        for name, parameter in list(inspect.signature(root_fn).parameters.items())[1:]:
            needed = parameter.default is inspect.Parameter.empty
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not needed:
                continue
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise NotTraceable("its forward takes *args, **kwargs or needs keywords")
            if needed:
                required.append(name)
        if not required:
            raise NotTraceable("its forward takes no argument")
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in required]
        if self.given:
            options = {name: self.create_proxy("placeholder", name, (), {}) for name in self.given}
            root_fn = functools.partial(root_fn, **options)
        return root_fn, [self.root, *proxies]


def _context() -> tuple:
    """The modes of torch that a graph does not record."""
    devices = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices),
    )
