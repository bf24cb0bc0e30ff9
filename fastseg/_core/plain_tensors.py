"""Plain tensors: torch's own dense ones, of which nobody needs to record or see an op.

An op on them may go to its kernel without the dispatcher's other steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, is_grad_enabled
from torch._C import (
    _dispatch_keys,
    _get_function_stack_at,
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from fastseg._core.autograd import refuse_tangents


def needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd would record an op on these tensors in eager mode."""
    if is_grad_enabled():
        for t in tensors:  # a generator in any() would take longer
            if t is not None and t.requires_grad:
                return True
    return False


def gradient_free(tensors: Sequence[Tensor | None]) -> bool:
    """Whether no gradient can be asked for: in eager mode, outside of functorch's transforms."""
    if is_dynamo_compiling() or peek_interpreter_stack() is not None or needs_gradient(tensors):
        return False
    refuse_tangents("fastseg", tensors)
    return True


def takes_no_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether what is faster without gradients is to run.

    While torch.jit.trace looks on it does, with any tensors: the trace is made with gradients and
    compared with one without, which must be the same. The ops have gradients all the same.
    """
    return gradient_free(tensors if _get_tracing_state() is None else ())


PLAIN = (Tensor, torch.nn.Parameter)
"""Classes of tensors on which ops are torch's own."""


def _plain_keys() -> frozenset[int]:
    with torch.inference_mode():
        inference = torch.empty(0, device="cpu")
    return frozenset(_dispatch_keys(t).raw_repr() for t in (inference, inference.clone()))


PLAIN_KEYS = _plain_keys()
"""Dispatch keys of dense tensors on the CPU. Sparse and quantised tensors have other keys, and so
have those of a transform and views that negate or conjugate another tensor's values."""


def function_mode_looks_on() -> bool:
    """Whether there is a mode of functions but that of torch.set_default_device.

    A default device is of tensors that are made without one, which ops make none of.
    """
    count = _len_torch_function_stack()
    if count == 0:
        return False
    from torch.utils._device import DeviceContext  # which torch itself imports when it is needed

    return any(type(_get_function_stack_at(i)) is not DeviceContext for i in range(count))


def outside_modes() -> bool:
    """Whether no mode, transform or tracing looks at ops on plain tensors; a profiler may."""
    return not (
        is_dynamo_compiling()
        or _len_torch_dispatch_stack()
        or function_mode_looks_on()
        or _is_any_autocast_enabled()
        or _get_tracing_state() is not None
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def plain_on_cpu(tensors: Sequence[Tensor | None]) -> bool:
    """Whether an op on these tensors would only call its CPU kernel, which may then be called.

    On small maps the way through torch.library, with Python on both sides, takes longer than the
    kernel.
    """
    return outside_modes() and are_plain_on_cpu(tensors)


def are_plain_on_cpu(tensors: Sequence[Tensor | None]) -> bool:
    """Whether these tensors are torch's own dense ones on the CPU, and no profiler is at work."""
    if _profiler_enabled():  # it shows the op by its name
        return False
    for t in tensors:
        if t is None:
            continue
        if type(t) not in PLAIN or _dispatch_keys(t).raw_repr() not in PLAIN_KEYS:
            return False
    return True
