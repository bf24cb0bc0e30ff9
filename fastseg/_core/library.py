"""How an op is made: one schema, the reference as the fallback of every device, one fake.

With its derivative and its behaviour under vmap. The compiled libraries register their kernels for
the same names, which then come before the reference.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _AutoDispatchBelowAutograd,
    _dispatch_keys,
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from fastseg._core import extension
from fastseg._core.autograd import (
    Backward,
    Derivative,
    SetupContext,
    refuse_tangents,
    required_tensors,
)
from fastseg._core.remember import MOST_CALLS
from fastseg._core.vmap import Rule, by_slices

LIBRARY = torch.library.Library("fastseg", "DEF")
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

NAMES: list[str] = []
"""The names of all ops, in the order of their definition."""

DERIVATIVES: dict[torch._ops.OpOverload, Derivative] = {}
"""The derivatives of the ops that :func:`define` makes one for."""

DIRECT: dict[torch._ops.OpOverload, Callable] = {}
"""The functions of :func:`define_cpu` by their ops."""

CPU_PLANS: dict[tuple, Any] = {}
"""How calls are computed at the current level of SIMD, by what they look like."""

extension.WHEN_SIMD_LEVEL_CHANGES.append(CPU_PLANS.clear)

TRITON_NAMES: list[str] = []
"""The ops that run as Triton kernels on an NVIDIA GPU here."""


def define(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    setup_context: SetupContext | None = None,
    backward: Backward | None = None,
    autograd: Callable | None = None,
    vmap: Rule = by_slices,
) -> torch._ops.OpOverload:
    """Defines ``torch.ops.fastseg.<name>`` and returns it.

    Args:
        schema: the op's schema, beginning with its name.
        reference: its plain PyTorch implementation, which runs where no compiled one does.
        fake: the shapes, dtypes and layouts of its outputs, for tracing.
        setup_context: keeps what the gradient needs, see :class:`Derivative`.
        backward: the gradient; None: to ask for one is an error.
        autograd: takes the place of both: computes the op by differentiable ones.
        vmap: the rule for torch.vmap.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastseg::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.fastseg, name).default
    if autograd is None:
        DERIVATIVES[op] = Derivative(op, setup_context, backward)
        LIBRARY.impl(name, DERIVATIVES[op].kernel, "Autograd", with_keyset=True)
    else:
        check = required_tensors(op)

        def checked(*arguments):
            check(arguments)
            return autograd(*arguments)

        LIBRARY.impl(name, checked, "Autograd")
    defaults = [argument.default_value for argument in op._schema.arguments]

    def rule(info, in_dims, *arguments):
        missing = defaults[len(arguments) :]  # the dispatcher leaves out those at the end
        return vmap(op, info, (*in_dims, *[None] * len(missing)), *arguments, *missing)

    torch.library.register_vmap(f"fastseg::{name}", rule, lib=LIBRARY)
    NAMES.append(name)
    return op


def define_cpu(name: str, function: Callable) -> None:
    """Runs ``torch.ops.fastseg.<name>`` on the CPU as one of several compiled ops or torch's own.

    Args:
        name: an op that is defined.
        function: checks the arguments and chooses. Where nothing is compiled the reference runs.
    """
    if extension.CPU_MISSING:
        return
    LIBRARY.impl(name, function, "CPU")
    DIRECT[getattr(torch.ops.fastseg, name).default] = function


def keep_plan(key: tuple, plan: Any) -> None:
    """Puts a plan into CPU_PLANS."""
    if len(CPU_PLANS) >= MOST_CALLS:
        CPU_PLANS.clear()
    CPU_PLANS[key] = plan


def cpu_kernel(op: torch._ops.OpOverload) -> Callable:
    """What computes an op on the CPU, without what the dispatcher does before: a third of a call.

    For tensors of the CPU that nothing is to be recorded of.
    """
    return functools.partial(op._handle.redispatch_boxed, CPU)


def define_triton(name: str, function: Callable) -> None:
    """Runs ``torch.ops.fastseg.<name>`` as Triton kernels on CUDA where Triton is installed.

    Args:
        name: an op that is defined.
        function: checks the arguments, the first of which is a tensor, and launches the kernels,
            which it imports itself, so that Triton is not imported before the op first runs on a
            GPU.
    """
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return

    @functools.wraps(function)
    def on_device_of(first, *others):
        with torch.cuda.device_of(first):  # Triton launches on the current device
            return function(first, *others)

    LIBRARY.impl(name, on_device_of, "CUDA")
    TRITON_NAMES.append(name)


def backend(op: str, device: str) -> str:
    """The backend that runs an op here: "C++ (<SIMD level>)", "CUDA C++", "Triton" or "reference".

    Args:
        op: a name in ``torch.ops.fastseg``.
        device: "cpu" or "cuda".
    """
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastseg::{op}", key):
        return "reference"
    if device == "cpu":
        return f"C++ ({extension.simd_level()})"
    return "Triton" if op in TRITON_NAMES else "CUDA C++"


def call(op: torch._ops.OpOverload, tensors: Sequence[Tensor | None], *arguments) -> Any:
    """``op(*tensors, *arguments)``, with as little on the way to its kernel as the tensors allow.

    The dispatcher's way through Python costs more than a small kernel.

    Args:
        op: the op.
        tensors: its first arguments, all its tensors.
        arguments: all the others.
    """
    if not is_dynamo_compiling():
        if not needs_gradient(tensors):
            direct = DIRECT.get(op)
            if direct is not None and plain_on_cpu(tensors):
                return direct(*tensors, *arguments)
            if peek_interpreter_stack() is None:
                if forward_ad._current_level >= 0:
                    refuse_tangents(op.name(), tensors)
                with _AutoDispatchBelowAutograd():
                    return op(*tensors, *arguments)
        elif plain_on_cpu(tensors):
            return DERIVATIVES[op](
                (*tensors, *arguments), functools.partial(_below_autograd, op, tensors, arguments)
            )
    return op(*tensors, *arguments)


def _below_autograd(op, tensors, arguments):
    direct = DIRECT.get(op)
    if direct is not None:
        return direct(*tensors, *arguments)
    with _AutoDispatchBelowAutograd():
        return op(*tensors, *arguments)


def needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Autograd would record an op on these, in eager mode."""
    if is_grad_enabled():
        for t in tensors:  # a generator in any() would take longer
            if t is not None and t.requires_grad:
                return True
    return False


def gradient_free(tensors: Sequence[Tensor | None]) -> bool:
    """No gradient can be asked for: eager, outside of functorch's transforms."""
    if is_dynamo_compiling() or peek_interpreter_stack() is not None or needs_gradient(tensors):
        return False
    refuse_tangents("fastseg", tensors)
    return True


PLAIN = (Tensor, torch.nn.Parameter)
"""Classes of tensors whose ops are torch's own."""


def _plain_keys() -> frozenset[int]:
    with torch.inference_mode():
        inference = torch.empty(0, device="cpu")
    return frozenset(_dispatch_keys(t).raw_repr() for t in (inference, inference.clone()))


PLAIN_KEYS = _plain_keys()
"""Dispatch keys of dense tensors on the CPU: sparse and quantised ones, those of a transform, and
those whose values are another tensor's but for the sign have others."""


def plain_on_cpu(tensors: Sequence[Tensor | None]) -> bool:
    """An op on these does no more than call its CPU kernel: so that may be called without the op.

    On small maps the way through torch.library, Python on both sides, takes longer than the kernel.
    """
    if (
        is_dynamo_compiling()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _is_any_autocast_enabled()
        or _get_tracing_state() is not None
        or _profiler_enabled()  # shows the op by its name
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    for t in tensors:
        if t is None:
            continue
        if type(t) not in PLAIN or _dispatch_keys(t).raw_repr() not in PLAIN_KEYS:
            return False
    return True
