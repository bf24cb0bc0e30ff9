"""The derivative of an op: one autograd.Function, made from the op's schema.

It replaces torch.library.register_autograd, whose Function the transforms of torch.func (grad, vjp,
jacrev) refuse, and whose call takes several times as long.

The dispatcher calls it at the key Autograd, as it calls torch's own derivatives. Under transforms
it does so once for each level; the Function takes and returns the tensors of that level, and the
call inside it goes on to the next one. torch allows such a single-level Function on request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _any_requires_grad, _AutoDispatchBelowAutograd
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

TENSOR_LISTS = ("List[Tensor]", "List[Optional[Tensor]]")
TENSORS = ("Tensor", "Optional[Tensor]", *TENSOR_LISTS)

SetupContext = Callable[[Any, Sequence, Any], None]
"""``setup_context(ctx, arguments, output)``, a function that keeps what the gradient needs. It gets
all arguments of the schema, with their defaults."""

Backward = Callable[..., Sequence[Tensor | None]]
"""``backward(ctx, *grads)``, a function that returns the gradients of the op's tensors, those of
lists one by one, in the order of ``ctx.needs_input_grad``. At least one of the grads is given."""


class _Call(NamedTuple):
    """A call of an op: its arguments, and the function that computes its output."""

    arguments: Sequence
    run: Callable[[], Any]


class Derivative:
    """Differentiates an op, in eager mode, under autograd's own modes and functorch's transforms.

    Args:
        op: the op.
        setup_context: a :data:`SetupContext`, or None where the gradient needs nothing.
        backward: a :data:`Backward`, or None for an op without a gradient: asking for one is then
            an error.
    """

    def __init__(
        self,
        op: torch._ops.OpOverload,
        setup_context: SetupContext | None,
        backward: Backward | None,
    ):
        schema = op._schema
        self._op, self._name = op, op.name()
        self._defaults = [a.default_value for a in schema.arguments]
        self._check = required_tensors(op)
        kinds = [str(a.type) for a in schema.arguments]
        self._tensors = sum(kind in TENSORS for kind in kinds)
        self._has_lists = any(kind in TENSOR_LISTS for kind in kinds)
        self._returns_list = [str(r.type) for r in schema.returns] == ["List[Tensor]"]
        # Function.apply binds its arguments by inspect.signature, which takes as long as the rest.
        function = _make_function(op, setup_context, backward or _no_gradient(op))
        self._apply = super(torch.autograd.Function, function).apply

    def __call__(self, arguments: Sequence, run: Callable[[], Any]) -> Any:
        """Returns ``run()``, recorded by autograd as the op with these arguments.

        Args:
            arguments: the op's arguments, with or without the defaults at the end.
            run: computes the op without its derivative; it is called with gradients off.
        """
        arguments = (*arguments, *self._defaults[len(arguments) :])
        tensors = arguments[: self._tensors]
        if self._has_lists:
            tensors = flat_tensors(arguments)
        output = self._apply(*tensors, _Call(arguments, run))
        return list(output) if self._returns_list else output

    def kernel(self, keyset: torch._C.DispatchKeySet, *arguments) -> Any:
        """Computes the op for the dispatcher, which calls this at the key Autograd.

        Args:
            keyset: the keys of the call.
            arguments: the op's arguments, without defaults at the end.
        """
        self._check(arguments)
        below = keyset & torch._C._after_autograd_keyset
        refuse_tangents(self._name, arguments)

        def run():
            with _AutoDispatchBelowAutograd():
                return self._op.redispatch(below, *arguments)

        if not (torch.is_grad_enabled() and _any_requires_grad(*arguments)):
            return run()
        if peek_interpreter_stack() is None:
            return self(arguments, run)

        def run_lower_level():  # the gradients of that level are not this level's
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return run()

        with enable_single_level_autograd_function():
            return self(arguments, run_lower_level)


def _make_function(op, setup_context, backward) -> type[torch.autograd.Function]:
    def forward(ctx, *inputs):
        arguments, run = inputs[-1]
        output = run()
        if isinstance(output, list):
            output = tuple(output)
        ctx.set_materialize_grads(False)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    def backward_of_inputs(ctx, *grads):
        if all(g is None for g in grads):
            return (None,) * len(ctx.needs_input_grad)
        return (*backward(ctx, *grads), None)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward_of_inputs)}
    return type(f"{op.namespace}_{op._opname}", (torch.autograd.Function,), methods)


def required_tensors(op: torch._ops.OpOverload) -> Callable[[Sequence], None]:
    """Returns a check that required tensors are not None: torch would pass it to the kernels."""
    schema = enumerate(op._schema.arguments)
    required = [(i, a.name) for i, a in schema if str(a.type) == "Tensor"]

    def check(arguments: Sequence) -> None:
        for i, name in required:
            if arguments[i] is None:
                raise TypeError(f"{op.name()}: {name} must be a tensor, got None")

    return check


def _no_gradient(op) -> Backward:
    def backward(ctx, *grads):
        raise NotImplementedError(f"{op.name()} has no gradient of its own")

    return backward


def flat_tensors(arguments: Sequence) -> list[Tensor | None]:
    """Returns the tensors among an op's arguments, those of lists one by one."""
    flat: list[Tensor | None] = []
    for a in arguments:
        if a is None or isinstance(a, Tensor):
            flat.append(a)
        elif isinstance(a, (list, tuple)):
            flat.extend(t for t in a if t is None or isinstance(t, Tensor))
    return flat


def refuse_tangents(name: str, arguments: Sequence) -> None:
    """Raises NotImplementedError where forward-mode AD would lose its tangents."""
    if forward_ad._current_level < 0:
        return
    for t in flat_tensors(arguments):
        if t is not None and forward_ad.unpack_dual(t).tangent is not None:
            raise NotImplementedError(f"{name}: there is no forward-mode derivative")
