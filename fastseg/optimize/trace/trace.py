"""What a module's forward does, as a torch.fx graph, and when that is not to be trusted.

A graph is one run of the forward with stand-ins for tensors: what Python decides on the way is
fixed in it. So a forward is traced in training and in evaluation, under a witness, and refused
where the graphs differ or a run has done or asked what no graph shows.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fastseg.optimize.classify.effects import module_of, returns_tensor
from fastseg.optimize.classify.eligible import has_hooks
from fastseg.optimize.classify.steps import Step, classify
from fastseg.optimize.trace.memory import Memory
from fastseg.optimize.trace.stand_ins import (
    CANNOT,
    Kind,
    NotTraceable,
    StandIn,
    is_stand_in,
    kind_of,
)
from fastseg.optimize.trace.witness import Witness

OF_OPS = ("torch.nn.", "fastseg.nn.")


@dataclasses.dataclass
class Trace:
    """A forward's graph and what it was made from.

    Attributes:
        root: the module.
        graph: of its forward.
        steps: what each node is.
        memory: which values may share memory.
        witnesses: of the runs.
        inlined: the children whose forwards are part of the graph.
        asks_for_arguments: whether the forward has asked what its arguments are.
    """

    root: nn.Module
    graph: fx.Graph
    steps: dict[fx.Node, Step]
    memory: Memory
    witnesses: list[Witness]
    inlined: list[nn.Module]
    asks_for_arguments: bool


class BlockTracer(fx.Tracer):
    """Optional arguments of the forward have their defaults; children are calls.

    Args:
        inline: whether a child's forward becomes part of the graph.
        witness: of the run.

    Attributes:
        asked_for: the nodes of whose values the forward has asked the type.
        inlined: the children whose forwards are part of the graph.
    """

    proxy_buffer_attributes = True

    def __init__(self, inline: Callable[[nn.Module], bool], witness: Witness):
        super().__init__()
        self.inline = inline
        self.witness = witness
        self.context, self.thread = _context(), threading.get_ident()
        self.asked_for: set[fx.Node] = set()
        self.inlined: list[nn.Module] = []

    def is_asked_for(self, node: fx.Node) -> None:
        """Whether it is a tensor, which is supposed of arguments and what modules return."""
        if node.meta["kind"] is Kind.VALUE or (
            node.meta["kind"] is Kind.UNKNOWN and node.op != "call_module"
        ):
            raise NotTraceable("its forward asks for the type of a value that it has computed")
        self.asked_for.add(node)

    def create_node(self, *arguments, **options):  # noqa: D102
        if _context() != self.context:
            raise NotTraceable("its forward changes the gradient mode or autocast")
        node = super().create_node(*arguments, **options)
        if node.op != "output":
            node.meta["kind"] = kind_of(self.root, node, returns_tensor(self.root, node))
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
        if self.inline(m):
            self.inlined.append(m)
            return False
        return True

    def call_module(self, m, forward, args, kwargs):  # noqa: D102
        if threading.get_ident() != self.thread:  # whose models run meanwhile as they are
            return forward(*args, **kwargs)
        others = not self.inline(m) and not type(m).__module__.startswith(OF_OPS)
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
            if self.inline(mod):
                return ""
            raise NotTraceable("its forward calls a module that is none of its own") from None

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):  # noqa: D102
        required = []
        for name, parameter in list(inspect.signature(root_fn).parameters.items())[1:]:
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise NotTraceable("its forward takes *args, **kwargs or keywords")
            if parameter.default is inspect.Parameter.empty:
                required.append(name)
        if not required:
            raise NotTraceable("its forward takes no argument")
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in required]
        return root_fn, [self.root, *proxies]


def _context() -> tuple:
    """What a graph does not record."""
    devices = ("cpu", "cuda")
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices),
    )


def is_sequential(module: nn.Module) -> bool:
    """Its forward is nn.Sequential's, whatever its class."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def sequential_only(module: nn.Module) -> bool:
    """Inlines what is certain to be no more than its children, one after the other."""
    return is_sequential(module) and not has_hooks(module)


def not_torch(module: nn.Module) -> bool:
    """Inlines all but torch's own modules and fastseg's."""
    return sequential_only(module) or not type(module).__module__.startswith(OF_OPS)


def has_own_forward(module: nn.Module) -> bool:
    """Whether there is something to trace."""
    return is_sequential(module) or not type(module).__module__.startswith(OF_OPS)


class Traces:
    """Traces of a model's modules, each made once."""

    def __init__(self):
        self._made: dict[tuple, Trace | NotTraceable] = {}
        self._returns_tensor: dict[nn.Module, bool] = {}

    def of(self, module: nn.Module, inline: Callable[[nn.Module], bool] = sequential_only) -> Trace:
        """The trace of a module's forward.

        Raises:
            NotTraceable: with the reason.
        """
        key = module, inline
        if key not in self._made:
            try:
                self._made[key] = self._trace(module, inline)
            except NotTraceable as reason:
                self._made[key] = reason
        made = self._made[key]
        if isinstance(made, NotTraceable):
            raise made
        return made

    def _trace(self, module: nn.Module, inline) -> Trace:
        first, *others = self._in_both_modes(module, inline)
        if any(
            o.graph.python_code("self").src != first.graph.python_code("self").src for o in others
        ):
            raise NotTraceable("its forward differs between training and evaluation")
        for other in others:
            first.witnesses += other.witnesses
            first.asks_for_arguments |= other.asks_for_arguments
        return first

    def _in_both_modes(self, module: nn.Module, inline) -> list[Trace]:
        if isinstance(module, fx.GraphModule | torch.jit.ScriptModule):
            raise NotTraceable(f"is a {type(module).__name__}")
        if "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__:
            raise NotTraceable("its forward was replaced")
        modules = list(module.modules())
        training, traces = [m.training for m in modules], []
        both = (
            (module.training,) if is_sequential(module) else (module.training, not module.training)
        )
        for mode in both:
            try:
                for m in modules:
                    m.__dict__["training"] = mode
                run = _run(module, inline)
            finally:
                for m, before in zip(modules, training, strict=True):
                    m.__dict__["training"] = before
            traces.append(self._checked(module, *run))
        return traces

    def _checked(self, module: nn.Module, graph: fx.Graph, tracer: BlockTracer) -> Trace:
        """Of a run, if what it has supposed is so."""
        witness, supposed = tracer.witness, tracer.asked_for
        asks = witness.asks_for_none or any(n.meta["kind"] is Kind.ARGUMENT for n in supposed)
        if witness.asks_for_none:
            supposed = {n for n in graph.nodes if n.meta.get("kind") is Kind.UNKNOWN} | supposed
        for node in supposed:
            if not self._is_tensor(module, node):
                raise NotTraceable("its forward asks what a module has returned")
        steps = classify(module, graph)
        memory = Memory(module, graph)
        return Trace(module, graph, steps, memory, [witness], tracer.inlined, asks)

    def _is_tensor(self, root: nn.Module, node: fx.Node) -> bool:
        """Whether it is a tensor, if arguments are."""
        if node.meta["kind"] is not Kind.UNKNOWN:
            return node.meta["kind"] is not Kind.VALUE
        if node.op != "call_module":
            return False
        module = module_of(root, node)
        if module not in self._returns_tensor:
            self._returns_tensor[module] = False  # while it is found out
            self._returns_tensor[module] = self._finds_tensor(module)
        return self._returns_tensor[module]

    def _finds_tensor(self, module: nn.Module) -> bool:
        """Whether a module returns one tensor, in training and in evaluation."""
        try:
            traces = self._in_both_modes(module, sequential_only)
        except NotTraceable:
            return False
        outputs = [next(iter(reversed(t.graph.nodes))).args[0] for t in traces]
        return all(isinstance(y, fx.Node) and self._is_tensor(module, y) for y in outputs)


def _run(module: nn.Module, inline) -> tuple[fx.Graph, BlockTracer]:
    """One run of a forward.

    Raises:
        NotTraceable: with the reason.
    """
    witness = Witness(module)
    tracer = BlockTracer(inline, witness)
    try:
        with witness.looking():
            graph = tracer.trace(module)
    except NotTraceable:
        raise
    except Exception as error:
        reason = witness.refusal or (
            f"{CANNOT} needs the value or the size of a tensor"
            if isinstance(error, (TypeError, ValueError))
            else f"{CANNOT} raises {type(error).__name__} without tensors"
        )
        raise NotTraceable(reason) from error
    finally:
        witness.finish()
    if witness.refusal:
        raise NotTraceable(witness.refusal)
    return graph, tracer
