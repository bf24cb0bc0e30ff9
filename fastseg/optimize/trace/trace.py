"""What a module's forward does, as a torch.fx graph, and when that is not to be trusted.

A graph is one run of the forward with stand-ins for tensors: what Python decides on the way is
fixed in it. So a forward is traced in training and in evaluation, under a witness, and refused
where the graphs differ or a run has done or asked what no graph shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import fx, nn

from fastseg.optimize.classify.steps import Step, Steps
from fastseg.optimize.trace.memory import Memory
from fastseg.optimize.trace.stand_ins import CANNOT, NotTraceable, ValueKind
from fastseg.optimize.trace.tracer import OF_OPS, BlockTracer
from fastseg.optimize.trace.witness import Witness


class Form(NamedTuple):
    """The way in which a forward is called.

    Attributes:
        given: the names of its optional arguments that it is given, tensors.
        training: whether the module is in training, or None for the same in both.
    """

    given: tuple[str, ...] = ()
    training: bool | None = None


ANY_FORM = Form()
"""Arguments without a default alone, in training and in evaluation."""


DIFFERS = "its forward differs between training and evaluation"


@dataclasses.dataclass
class Trace:
    """A forward's graph and what it was made from.

    Attributes:
        root: the module.
        graph: the graph of the module's forward.
        steps: the step of each node.
        memory: which values may share memory.
        witnesses: the witnesses of the runs.
        inlined: the children whose forwards are part of the graph.
        asks_for_arguments: whether the forward has asked what its arguments are.
        form: the way in which it was called.
    """

    root: nn.Module
    graph: fx.Graph
    steps: dict[fx.Node, Step]
    memory: Memory
    witnesses: list[Witness]
    inlined: list[nn.Module]
    asks_for_arguments: bool
    form: Form = ANY_FORM


def is_sequential(module: nn.Module) -> bool:
    """Whether a module's forward is nn.Sequential's, whatever its class."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def sequential_only(step: Step) -> bool:
    """Whether a module is certain to be no more than its children, one after the other."""
    return is_sequential(step.module) and not step.is_hooked


def not_torch(step: Step) -> bool:
    """Whether a module is to be inlined where all but torch's own and fastseg's are."""
    return sequential_only(step) or not type(step.module).__module__.startswith(OF_OPS)


class Chosen(NamedTuple):
    """Tells of chosen children too that their forwards are to be part of the graph.

    Attributes:
        base: tells it of all others.
        children: the chosen ones.
    """

    base: Callable[[Step], bool]
    children: frozenset[nn.Module]

    def __call__(self, step: Step) -> bool:  # noqa: D102
        return step.module in self.children or self.base(step)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module's forward is a Sequential's or its author's: something to trace."""
    return is_sequential(module) or not type(module).__module__.startswith(OF_OPS)


class Traces:
    """Traces of a model's modules, each made once.

    Args:
        steps: the steps of the model's modules.
    """

    def __init__(self, steps: Steps):
        self.steps = steps
        self._made: dict[tuple, Trace | NotTraceable] = {}
        self._returns_tensor: dict[nn.Module, bool] = {}

    def of(
        self,
        module: nn.Module,
        inline: Callable[[Step], bool] = sequential_only,
        form: Form = ANY_FORM,
    ) -> Trace:
        """The trace of a module's forward.

        Args:
            module: the module.
            inline: tells by its step whether a child's forward becomes part of the graph.
            form: the way in which it is called.

        Raises:
            NotTraceable: the forward is to be left, and the reason why.
        """
        key = module, inline, form
        if key not in self._made:
            try:
                self._made[key] = self._trace(module, inline, form)
            except NotTraceable as reason:
                self._made[key] = reason
        made = self._made[key]
        if isinstance(made, NotTraceable):
            raise made
        return made

    def _trace(self, module: nn.Module, inline, form: Form) -> Trace:
        first, *others = self._in_modes(module, inline, form)
        if any(
            o.graph.python_code("self").src != first.graph.python_code("self").src for o in others
        ):
            raise NotTraceable(DIFFERS)
        for other in others:
            first.witnesses += other.witnesses
            first.asks_for_arguments |= other.asks_for_arguments
        return first

    def _in_modes(self, module: nn.Module, inline, form: Form = ANY_FORM) -> list[Trace]:
        if isinstance(module, fx.GraphModule | torch.jit.ScriptModule):
            raise NotTraceable(f"is a {type(module).__name__}")
        if "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__:
            raise NotTraceable("its forward was replaced")
        # An attribute of a scripted module is in its C++ alone; one here would hide it for ever.
        modules = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
        training, traces = [m.training for m in modules], []
        modes = (module.training,)
        if form.training is not None:
            modes = (form.training,)
        elif not is_sequential(module):
            modes = (module.training, not module.training)
        for mode in modes:
            try:
                for m in modules:
                    m.__dict__["training"] = mode
                run = self._run(module, inline, form)
            finally:
                for m, before in zip(modules, training, strict=True):
                    m.__dict__["training"] = before
            traces.append(self._checked(module, form, *run))
        return traces

    def _checked(
        self, module: nn.Module, form: Form, graph: fx.Graph, tracer: BlockTracer
    ) -> Trace:
        """The trace of a run, if what the run has supposed is so."""
        witness, may_be_none = tracer.witness, (ValueKind.ARGUMENT, ValueKind.UNKNOWN)
        supposed = tracer.asked_for | {
            n for n in witness.asked_for_none if n.meta["kind"] in may_be_none
        }
        asks = witness.asks_for_none or any(n.meta["kind"] is ValueKind.ARGUMENT for n in supposed)
        if witness.asks_for_none:
            supposed = {
                n for n in graph.nodes if n.meta.get("kind") is ValueKind.UNKNOWN
            } | supposed
        for node in supposed:
            if not self._is_tensor(node):
                raise NotTraceable("its forward asks what a module has returned")
        steps = {node: node.meta["step"] for node in graph.nodes}
        memory = Memory(graph, steps)
        return Trace(module, graph, steps, memory, [witness], tracer.inlined, asks, form)

    def _is_tensor(self, node: fx.Node) -> bool:
        """Whether a node's value is a tensor, if arguments are."""
        if node.meta["kind"] is not ValueKind.UNKNOWN:
            return node.meta["kind"] is not ValueKind.OF_TORCH
        if node.op != "call_module":
            return False
        module = node.meta["step"].module
        if module not in self._returns_tensor:
            self._returns_tensor[module] = False  # what a module inside itself finds meanwhile
            self._returns_tensor[module] = self._finds_tensor(module)
        return self._returns_tensor[module]

    def _finds_tensor(self, module: nn.Module) -> bool:
        """Whether a module returns one tensor, in training and in evaluation."""
        try:
            traces = self._in_modes(module, sequential_only)
        except NotTraceable:
            return False
        outputs = [next(iter(reversed(t.graph.nodes))).args[0] for t in traces]
        return all(isinstance(y, fx.Node) and self._is_tensor(y) for y in outputs)

    def _run(self, module: nn.Module, inline, form: Form) -> tuple[fx.Graph, BlockTracer]:
        """Runs a forward once with stand-ins.

        Raises:
            NotTraceable: the forward is to be left, and the reason why.
        """
        witness = Witness(module)
        tracer = BlockTracer(self.steps, inline, witness, form.given)
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
