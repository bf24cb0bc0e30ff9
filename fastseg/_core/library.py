"""Definition of ops: one schema, a reference that runs on every device, and one fake.

The derivative and the rule for vmap belong to it. The compiled libraries register their kernels
for the same names, which then precede the reference.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    _AutoDispatchBelowAutograd,
    _get_tracing_state,
    _len_torch_dispatch_stack,
)
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
from fastseg._core.onnx_export import is_exporting, refuse
from fastseg._core.plain_tensors import needs_gradient, plain_on_cpu
from fastseg._core.remember import MOST_CALLS
from fastseg._core.vmap import Rule, by_slices

LIBRARY = torch.library.Library("fastseg", "DEF")
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

NAMES: list[str] = []
"""Names of all ops, in the order of their definition."""

DERIVATIVES: dict[torch._ops.OpOverload, Derivative] = {}
"""Derivatives by their ops."""

ON_CPU: dict[torch._ops.OpOverload, Callable] = {}
"""What computes ops on plain CPU tensors: functions of :func:`define_cpu`, or kernels."""

CPU_PLANS: dict[tuple, Any] = {}
"""Plans of calls at the current SIMD level, by the shapes and options of the calls."""

extension.WHEN_SIMD_LEVEL_CHANGES.append(CPU_PLANS.clear)

REFERENCES: dict[str, Callable] = {}
"""References by the names of their ops."""

STANDARD: dict[torch._ops.OpOverload, Callable] = {}
"""What ``torch.onnx.export`` records in place of ops: compositions of torch's own operators."""

LEAST_CAPABILITY = (8, 0)
"""Compute capability of a GPU from which on kernels are compiled; older ones spill."""

TRITON_NAMES: list[str] = []
"""Names of the ops that run as Triton kernels on an NVIDIA GPU here."""


def define(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    setup_context: SetupContext | None = None,
    backward: Backward | None = None,
    autograd: Callable | None = None,
    vmap: Rule = by_slices,
    standard: Callable | None = None,
) -> torch._ops.OpOverload:
    """Defines ``torch.ops.fastseg.<name>`` and returns it.

    Args:
        schema: the op's schema, beginning with its name.
        reference: the implementation in plain PyTorch, which runs where no compiled one does.
        fake: returns outputs of the right shapes, dtypes and layouts, for tracing.
        setup_context: keeps what the gradient needs, see :class:`Derivative`.
        backward: computes the gradient; None makes asking for one an error.
        autograd: computes the op by differentiable ones, in place of the two above.
        vmap: the rule for torch.vmap.
        standard: computes the op by operators that ONNX has, of sizes that may be symbols; None
            makes ``torch.onnx.export`` refuse it.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    REFERENCES[name] = reference

    @functools.wraps(fake)
    def checked_fake(*arguments, **options):
        if is_exporting():
            refuse(name)
        return fake(*arguments, **options)

    torch.library.register_fake(f"fastseg::{name}", checked_fake, lib=LIBRARY)
    op = getattr(torch.ops.fastseg, name).default
    ON_CPU[op] = cpu_kernel(op)
    if standard is not None:
        STANDARD[op] = standard
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
        missing = defaults[len(arguments) :]  # the dispatcher leaves out defaults at the end
        return vmap(op, info, (*in_dims, *[None] * len(missing)), *arguments, *missing)

    torch.library.register_vmap(f"fastseg::{name}", rule, lib=LIBRARY)
    NAMES.append(name)
    return op


def define_cpu(name: str, function: Callable) -> None:
    """Runs ``torch.ops.fastseg.<name>`` on the CPU as one of several compiled ops or torch's own.

    Where nothing is compiled the reference runs.

    Args:
        name: the name of a defined op.
        function: checks the arguments, chooses and computes.
    """
    if extension.CPU_MISSING:
        return
    LIBRARY.impl(name, function, "CPU")
    ON_CPU[getattr(torch.ops.fastseg, name).default] = function


def keep_plan(key: tuple, plan: Any) -> None:
    """Puts a plan into CPU_PLANS, which is emptied first where it is full."""
    if len(CPU_PLANS) >= MOST_CALLS:
        CPU_PLANS.clear()
    CPU_PLANS[key] = plan


def cpu_kernel(op: torch._ops.OpOverload) -> Callable:
    """Returns the function that computes an op on the CPU without the dispatcher's other steps.

    These take a third of a call. The function is for CPU tensors of which autograd, a transform or
    a mode need record nothing. Autograd does not see the copies that a kernel makes, either: it
    would take a lock of a tensor that requires a gradient, which a fork could leave locked for ever
    in the child.
    """
    compute = functools.partial(op._handle.redispatch_boxed, CPU)

    def run(*arguments):
        with _AutoDispatchBelowAutograd():
            return compute(*arguments)

    return run


def define_triton(name: str, function: Callable) -> None:
    """Runs ``torch.ops.fastseg.<name>`` as Triton kernels on CUDA where Triton is installed.

    An op that has compiled kernels keeps them. On a GPU below ``LEAST_CAPABILITY`` the reference
    runs.

    Args:
        name: the name of a defined op.
        function: checks the arguments, the first of which is a tensor, and launches the kernels. It
            imports them itself, so that Triton is not imported before the op first runs on a GPU.
    """
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"fastseg::{name}", "CUDA"):
        return

    LIBRARY.impl(name, on_device_of_first(function, REFERENCES[name]), "CUDA")
    TRITON_NAMES.append(name)


def on_device_of_first(function: Callable, reference: Callable) -> Callable:
    """The function, run on its first tensor's GPU, or the reference where that is too old."""

    @functools.wraps(function)
    def run(first, *others):
        if _capability(first.device) < LEAST_CAPABILITY:
            return reference(first, *others)
        with torch.cuda.device_of(first):  # Triton launches on the current device
            return function(first, *others)

    return run


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def backend(op: str, device: str) -> str:
    """Returns an op's backend here: "C++ (<SIMD level>)", "CUDA C++", "Triton" or "reference".

    Args:
        op: the op's name in ``torch.ops.fastseg``.
        device: "cpu" or "cuda".
    """
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastseg::{op}", key):
        return "reference"
    if device == "cpu":
        return f"C++ ({extension.simd_level()})"
    if op not in TRITON_NAMES:
        return "CUDA C++"
    return "reference" if _is_too_old() else "Triton"


def _is_too_old() -> bool:
    """Whether there is a GPU, and kernels are not compiled for it."""
    return torch.cuda.is_available() and _capability(torch.device("cuda")) < LEAST_CAPABILITY


def call(op: torch._ops.OpOverload, tensors: Sequence[Tensor | None], *arguments) -> Any:
    """Returns ``op(*tensors, *arguments)`` by the shortest way to its kernel.

    The dispatcher's way through Python takes longer than a small kernel.

    Args:
        op: the op.
        tensors: the op's first arguments, which are all its tensors.
        arguments: the op's other arguments.
    """
    if not is_dynamo_compiling():
        if not needs_gradient(tensors):
            if plain_on_cpu(tensors):
                return ON_CPU[op](*tensors, *arguments)
            if peek_interpreter_stack() is None:
                if forward_ad._current_level >= 0:
                    refuse_tangents(op.name(), tensors)
                with _AutoDispatchBelowAutograd():
                    if _len_torch_dispatch_stack() or _get_tracing_state() is not None:
                        return dispatch(op, *tensors, *arguments)
                    return op(*tensors, *arguments)
        elif plain_on_cpu(tensors):
            arguments = (*tensors, *arguments)
            return DERIVATIVES[op](arguments, functools.partial(ON_CPU[op], *arguments))
        return dispatch(op, *tensors, *arguments)
    return op(*tensors, *arguments)


def dispatch(op: torch._ops.OpOverload, *arguments) -> Any:
    """Returns ``op(*arguments)``; while torch exports to ONNX, computed by what stands for it."""
    if not is_dynamo_compiling() and is_exporting() and op in STANDARD:
        return STANDARD[op](*arguments)
    return op(*arguments)
