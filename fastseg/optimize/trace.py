"""What a module's forward does, as a torch.fx graph, and when that is not to be trusted.

A graph is one run of the forward with stand-ins for tensors: what Python decides on the way is
fixed in it. So a forward is traced in training and in evaluation, and refused where the graphs
differ, where the run left something behind in the module, or where it drew random numbers.
"""

from __future__ import annotations

import importlib
import inspect
import operator
import random
import textwrap
from types import ModuleType

import torch
from torch import fx, nn

from fastseg.optimize.eligible import has_hooks

OF_OPS = ("torch.nn.", "fastseg.nn.")


class NotTraceable(Exception):
    """Why a forward is left as it is."""


class InPlaceProxy(fx.Proxy):
    """A stand-in whose ``+=`` is in place, where torch.fx's would be ``+``."""


def _in_place(operation):
    def method(self, other):
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _operation in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(InPlaceProxy, f"__{_operation.__name__}__", _in_place(_operation))


class BlockTracer(fx.Tracer):
    """Optional arguments of the forward have their defaults; children are calls.

    Args:
        inline: whether a child's forward becomes part of the graph.
    """

    def __init__(self, inline):
        super().__init__()
        self.inline = inline
        self.context = _context()

    def create_node(self, *arguments, **options):  # noqa: D102
        if _context() != self.context:
            raise NotTraceable("its forward changes the gradient mode or autocast")
        return super().create_node(*arguments, **options)

    def proxy(self, node: fx.Node) -> fx.Proxy:  # noqa: D102
        return InPlaceProxy(node, self)

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:  # noqa: D102
        return not self.inline(m)

    def path_of_module(self, mod: nn.Module) -> str:  # noqa: D102
        try:
            return super().path_of_module(mod)
        except NameError:  # a slice of a Sequential is none of the root's modules, its parts are
            if self.inline(mod):
                return ""
            raise

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


def trace(module: nn.Module, inline=sequential_only) -> fx.Graph:
    """The graph of the module's forward.

    Raises:
        NotTraceable: with the reason.
    """
    if isinstance(module, fx.GraphModule | torch.jit.ScriptModule):
        raise NotTraceable(f"is a {type(module).__name__}")
    if "forward" in module.__dict__ or type(module).__call__ is not nn.Module.__call__:
        raise NotTraceable("its forward was replaced")
    training, graphs = module.training, []
    try:
        for mode in (training,) if is_sequential(module) else (training, not training):
            module.training = mode
            graphs.append(_trace_once(module, inline))
    finally:
        module.training = training
    if len({graph.python_code("self").src for graph in graphs}) > 1:
        raise NotTraceable("its forward differs between training and evaluation")
    return graphs[0]


def _trace_once(module: nn.Module, inline) -> fx.Graph:
    before = {m: _state(m) for m in module.modules()}
    drawn = random.getstate(), torch.get_rng_state()
    try:
        graph = BlockTracer(inline).trace(module)
    except NotTraceable:
        raise
    except Exception as error:
        message = str(error).strip().partition("\n")[0].partition(". ")[0]
        message = textwrap.shorten(message, 120, placeholder=" ...")
        raise NotTraceable(f"torch.fx cannot trace its forward: {message}") from error
    finally:
        changed = [m for m in before if _state(m) != before[m]]
        for m in changed:
            attributes, *inner = before[m]
            for name, content in zip(CONTENTS, inner, strict=True):
                attributes[name].clear()
                attributes[name].update(content)
            m.__dict__.clear()
            m.__dict__.update(attributes)
    if changed:
        raise NotTraceable("its forward writes attributes or makes tensors")
    if random.getstate() != drawn[0] or not torch.equal(torch.get_rng_state(), drawn[1]):
        raise NotTraceable("its forward draws random numbers")
    return graph


CONTENTS = ("_parameters", "_buffers", "_modules")


class _Same(dict):
    """Attributes, equal if they are the same objects."""

    def __eq__(self, other):
        return self.keys() == other.keys() and all(self[k] is other[k] for k in self)

    __hash__ = None


def _state(module: nn.Module) -> tuple:
    return _Same(module.__dict__), *(_Same(module.__dict__[name]) for name in CONTENTS)


class Program:
    """A graph's code, called as ``program(module, *arguments)``; immutable, can be pickled."""

    def __init__(self, source: str, names: dict, arguments: int):
        self.source, self.names, self.arguments = source, names, arguments
        namespace = dict(names)
        exec(compile(source, "<fastseg.optimize_>", "exec"), namespace)
        self.function = namespace["forward"]

    @classmethod
    def of(cls, graph: fx.Graph) -> Program:
        """The code of a graph."""
        graph.lint()
        code = graph.python_code("self")
        arguments = sum(node.op == "placeholder" for node in graph.nodes)
        return cls(code.src, dict(code.globals), arguments)

    def __call__(self, module: nn.Module, *arguments):
        """What the forward returns."""
        return self.function(module, *arguments)

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        modules = {k: v.__name__ for k, v in self.names.items() if isinstance(v, ModuleType)}
        others = {k: v for k, v in self.names.items() if k not in modules}
        return _unpickle, (self.source, modules, others, self.arguments)


def _unpickle(source: str, modules: dict[str, str], others: dict, arguments: int) -> Program:
    names = {k: importlib.import_module(v) for k, v in modules.items()}
    return Program(source, {**names, **others}, arguments)
