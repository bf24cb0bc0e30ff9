"""Batch norm in evaluation as a scale and a shift, cached by the modules that fold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch.compiler import is_compiling

from fastseg._core.devices import is_captured
from fastseg._core.formulas import compute_dtype
from fastseg._core.ordinary_tensors import ordinary_tensors
from fastseg._core.plain_tensors import (
    PLAIN,
    function_mode_looks_on,
    gradient_free,
    needs_gradient,
)
from fastseg.ops import fold_batch_norm
from fastseg.ops.conv.prepared_weights import State


def can_fold(bn: nn.Module) -> bool:
    """Whether a batch norm normalises by running statistics, not by the batch's."""
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm) or bn.training:
        return False
    return _tensors_of(bn)[2] is not None


def _tensors_of(bn: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor | None, ...]:
    """Returns weight, bias, running mean and variance."""
    held = bn.__dict__
    parameters, buffers = held["_parameters"], held["_buffers"]
    try:  # past nn.Module.__getattr__, which takes longer than all that is compared
        return (
            parameters["weight"],
            parameters["bias"],
            buffers["running_mean"],
            buffers["running_var"],
        )
    except KeyError:  # as of a parametrised module
        return bn.weight, bn.bias, bn.running_mean, bn.running_var


class _Entry(NamedTuple):
    """What is remembered of a batch norm.

    Attributes:
        eps: the module's.
        state: the state of its tensors.
        folded: scale and shift.
        tensors: the module's tensors themselves.
        aliases: their memory, which is so given to no other tensor at the same address.
    """

    eps: float
    state: State
    folded: tuple[Tensor, Tensor]
    tensors: Sequence[Tensor | None]
    aliases: Sequence[Tensor | None]


class FoldedBatchNorm:
    """A cache of :func:`fastseg.fold_batch_norm` for a module, where no gradient is needed.

    It is made anew when a tensor of the module is another one or has changed in place; a copy
    begins empty. On a GPU, writes to ``tensor.data`` in place go unseen, and so do the values that
    fully_shard gathers: call `forget` after them.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def __reduce__(self):
        return FoldedBatchNorm, ()

    def forget(self) -> None:
        """Empties the cache."""
        self._entry = None

    def kept(self, bn: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor] | None:
        """Returns scale and shift if they are kept and still the module's, else None.

        It is for eager mode without a mode or transform, of which it does not ask.
        """
        entry = self._entry
        if entry is None or entry.eps != bn.eps:
            return None
        tensors = _tensors_of(bn)
        for t, known in zip(tensors, entry.tensors, strict=True):
            if t is not known:
                return None
        if is_captured(entry.folded[0]):
            return None
        still = not needs_gradient(tensors) and entry.state.still_of_same(tensors)
        return entry.folded if still else None

    def __call__(self, bn: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
        """Returns scale and shift, (C,), float32 (float64 for a float64 module)."""
        tensors = _tensors_of(bn)
        if is_compiling() or not gradient_free(tensors) or not _can_keep(tensors):
            return fold(tensors, bn.eps)
        entry = self._entry  # read once: replicas in other threads share it
        if entry is None or entry.eps != bn.eps or not entry.state.still_of(tensors):
            with ordinary_tensors():
                folded = fold(tensors, bn.eps)
            if folded[0].is_cuda:  # threads with other streams may take it right away
                torch.cuda.current_stream(folded[0].device).synchronize()
            aliases = [t if t is None else t.detach() for t in tensors]
            entry = self._entry = _Entry(bn.eps, State(tensors), folded, tensors, aliases)
        return entry.folded


def _can_keep(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a result of these tensors may be cached.

    It may not for tensors of inference mode, which have no version, for those without memory, for
    those of a mode such as FakeTensorMode, which mean nothing outside of it, and while
    torch.jit.trace must see the computation. So must a CUDA graph, which computes it anew for
    weights that have changed since, and before its first replay not at all.
    """
    looked_on = _len_torch_dispatch_stack() or function_mode_looks_on()
    if looked_on or _get_tracing_state() is not None:
        return False
    for t in tensors:
        if t is not None and (type(t) not in PLAIN or t.is_inference() or t.is_meta):
            return False
    return not is_captured(tensors[2])


def fold(tensors: Sequence[Tensor | None], eps: float) -> tuple[Tensor, Tensor]:
    """Returns scale and shift for a batch norm's weight, bias, running mean and variance."""
    wide = compute_dtype(tensors[2].dtype)
    return fold_batch_norm(*(t if t is None else t.to(wide) for t in tensors), eps)
