"""How an op is made: one schema, the reference as the fallback of every device, one fake.

The compiled libraries register their kernels for the same names, which then come before the
reference. Autograd and vmap rules are registered beside the op that they belong to.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

LIBRARY = torch.library.Library("fastseg", "DEF")

NAMES: list[str] = []
"""The names of all ops, in the order of their definition."""

CPU_CHOICES: dict[str, Callable] = {}
"""By name, what chooses among compiled ops on the CPU."""

CPU_PLANS: dict[tuple, Callable] = {}
"""By what a call looks like, how it is computed at the current level of SIMD."""

TRITON_NAMES: list[str] = []
"""The ops that run as Triton kernels on an NVIDIA GPU here."""


def define(schema: str, *, reference: Callable, fake: Callable) -> None:
    """Defines ``torch.ops.fastseg.<name>``.

    Args:
        schema: the op's schema, beginning with its name.
        reference: its plain PyTorch implementation, which runs where no compiled one does.
        fake: the shapes, dtypes and layouts of its outputs, for tracing.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastseg::{name}", fake, lib=LIBRARY)
    NAMES.append(name)


def define_cpu(name: str, function: Callable) -> None:
    """Runs ``torch.ops.fastseg.<name>`` on the CPU as one of several compiled ops or torch's own.

    Args:
        name: an op that is defined.
        function: checks the arguments and chooses; it is not called where nothing is compiled.
    """
    CPU_CHOICES[name] = function


def register_cpu_choices() -> None:
    """Once the compiled library is loaded."""
    for name, function in CPU_CHOICES.items():
        LIBRARY.impl(name, function, "CPU")


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


def call(op: torch._ops.OpOverload, tensors: Sequence[Tensor | None], *arguments) -> Any:
    """``op(*tensors, *arguments)``, without the op's autograd layer where nobody can need it.

    The layer that torch.library puts before an op is Python and costs more than a small kernel.
    """
    if gradient_free(tensors):
        with torch._C._AutoDispatchBelowAutograd():
            return op(*tensors, *arguments)
    return op(*tensors, *arguments)


def gradient_free(tensors: Sequence[Tensor | None]) -> bool:
    """No gradient can be asked for: eager, outside of functorch's transforms."""
    if is_dynamo_compiling():
        return False
    if forward_ad._current_level >= 0:
        for t in tensors:  # torch.library's autograd layer would drop the tangent silently
            if t is not None and forward_ad.unpack_dual(t).tangent is not None:
                raise NotImplementedError("fastseg: ops have no forward-mode derivative")
    if peek_interpreter_stack() is not None:
        return False
    if is_grad_enabled():
        for t in tensors:  # a generator in any() would take longer than the rest
            if t is not None and t.requires_grad:
                return False
    return True


PLAIN = (Tensor, torch.nn.Parameter)
"""Classes of tensors whose ops are torch's own."""


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
    ):
        return False
    for t in tensors:
        if t is not None and (type(t) not in PLAIN or not t.is_cpu or t.is_neg()):
            return False
    return gradient_free(tensors)


def fold_vmap_batch(
    batch_size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """Makes vmap's batch part of N, which no op looks at.

    Args:
        batch_size: the size of vmap's dimension.
        in_dims: where each tensor has it; None: it has not.
        tensors: (..., C, H, W) without vmap's dimension.

    Returns:
        The tensors with vmap's dimension folded into N, and the function that unfolds an output,
        vmap's dimension first.
    """
    front = [
        t.expand(batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, in_dims, strict=True)
    ]
    if front[0].dim() == 4:  # of (C, H, W) each: vmap's dimension is N itself
        return front, lambda out: out
    n = front[0].shape[1]
    return [t.flatten(0, 1) for t in front], lambda out: out.unflatten(0, (batch_size, n))
