"""The calls that upsampled logits and what reads them become: one op, or torch's as they were.

All options are read in each call, those of modules too, so that they may be changed at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import SymInt, Tensor, fx, nn
from torch._C import _get_tracing_state
from torch.compiler import is_compiling

from fastseg._core.targets import REDUCTIONS
from fastseg.ops import upsample_argmax, upsample_cross_entropy
from fastseg.optimize.blocks.calls import traced
from fastseg.optimize.blocks.program import TENSORS

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Resizing(NamedTuple):
    """The arguments of ``F.interpolate`` after its input."""

    size: Any = None
    scale_factor: Any = None
    mode: str = "nearest"
    align_corners: bool | None = None
    recompute_scale_factor: bool | None = None
    antialias: bool = False

    @classmethod
    def of(cls, upsample: nn.Upsample | Resizing) -> Resizing:
        """The arguments with which a module calls ``F.interpolate`` now."""
        if isinstance(upsample, Resizing):
            return upsample
        return cls(
            upsample.size,
            upsample.scale_factor,
            upsample.mode,
            upsample.align_corners,
            upsample.recompute_scale_factor,
        )

    def pixels(self, x: Tensor) -> tuple[int, int] | None:
        """The (H, W) that x (N, C, h, w) is upsampled to, or None if no op does what torch does."""
        if self.mode != "bilinear" or self.antialias or type(self.align_corners) not in _CORNERS:
            return None
        if self.size is None:
            return self._scaled(x)
        if self.scale_factor is not None or self.recompute_scale_factor:
            return None
        size = _pair(self.size)
        whole = size is not None and all(isinstance(n, (int, SymInt)) and n > 0 for n in size)
        return size if whole else None

    def _scaled(self, x: Tensor) -> tuple[int, int] | None:
        """The size by the factors; torch's pixels lie elsewhere where that is a fraction."""
        factors = _pair(self.scale_factor)
        if factors is None or not all(type(f) in (int, float) and 0 < f < inf for f in factors):
            return None
        size = []
        for n, factor in zip(x.shape[2:], factors, strict=True):
            if factor == int(factor):
                size.append(n * int(factor))
                continue
            pixels = int(n * factor)
            exact = pixels == n * factor or self.align_corners or self.recompute_scale_factor
            if pixels < 1 or not exact:
                return None
            size.append(pixels)
        return size[0], size[1]


_CORNERS = (bool, type(None))


def _pair(value) -> tuple | None:
    """Both of a pair of values, given as one or as two."""
    if not isinstance(value, Sequence):
        return value, value
    return tuple(value) if len(value) == 2 else None


class Loss(NamedTuple):
    """The arguments of ``F.cross_entropy`` after its input and target."""

    weight: Tensor | None = None
    size_average: bool | None = None
    ignore_index: int = -100
    reduce: bool | None = None
    reduction: str = "mean"
    label_smoothing: float = 0.0

    @classmethod
    def of(cls, loss: nn.CrossEntropyLoss | Loss) -> Loss:
        """The arguments with which a module calls ``F.cross_entropy`` now."""
        if isinstance(loss, Loss):
            return loss
        return cls(
            loss.weight,
            ignore_index=loss.ignore_index,
            reduction=loss.reduction,
            label_smoothing=loss.label_smoothing,
        )

    def fits(self, x: Tensor, target: Tensor, size: tuple[int, int]) -> bool:
        """Whether the op computes it of x (N, C, h, w), upsampled to a size, and a target."""
        return (
            type(target) in TENSORS
            and target.dtype == torch.int64
            and target.is_cpu
            and target.shape == (x.shape[0], *size)
            and self.size_average is None
            and self.reduce is None
            and self.reduction in REDUCTIONS
            and type(self.ignore_index) is int
            and type(self.label_smoothing) in (int, float)
            and 0 <= self.label_smoothing <= 1
            and (self.weight is None or _is_weight(self.weight, x))
        )


def _is_weight(weight, x: Tensor) -> bool:
    return (
        isinstance(weight, Tensor)
        and (type(weight) in TENSORS or type(weight) is nn.Parameter)
        and (weight.dtype == x.dtype or _autocasts(weight, x))
        and weight.shape == (x.shape[1],)
        and weight.is_cpu
        and not weight.requires_grad
    )


def _autocasts(*tensors: Tensor) -> bool:
    """Whether autocast makes all tensors float32 for a loss."""
    return torch.is_autocast_enabled("cpu") and all(t.dtype != torch.float64 for t in tensors)


def argmax_of_upsampled(x: Tensor, upsample: nn.Upsample | Resizing, keepdim: bool) -> Tensor:
    """The classes, int64 (N, H, W) or (N, 1, H, W), of logits (N, C, h, w) that are upsampled.

    Args:
        x: the logits.
        upsample: the module or the arguments that they are upsampled by.
        keepdim: whether the result has a dimension of classes, of one.
    """
    if isinstance(x, fx.Proxy):
        return traced(argmax_of_upsampled, x, upsample, keepdim)
    resizing = Resizing.of(upsample)
    size = resizing.pixels(x) if _are_logits(x) else None
    if size is None:
        return F.interpolate(x, *resizing).argmax(1, keepdim)
    classes = upsample_argmax(
        x, size, align_corners=bool(resizing.align_corners), dtype=torch.int64
    )
    return classes.unsqueeze(1) if keepdim else classes


def cross_entropy_of_upsampled(
    x: Tensor,
    upsample: nn.Upsample | Resizing,
    target: Tensor,
    criterion: nn.CrossEntropyLoss | Loss,
    may_change: bool,
) -> Tensor:
    """The cross-entropy of logits (N, C, h, w) that are upsampled.

    Args:
        x: the logits.
        upsample: the module or the arguments that they are upsampled by.
        target: what ``F.cross_entropy`` takes.
        criterion: the module or the arguments of the loss.
        may_change: whether the logits may be written to before the gradient is computed, which
            needs them as torch's does not.
    """
    if isinstance(x, fx.Proxy):
        return traced(cross_entropy_of_upsampled, x, upsample, target, criterion, may_change)
    resizing, loss = Resizing.of(upsample), Loss.of(criterion)
    size = resizing.pixels(x) if _are_logits(x) else None
    if size is None or not loss.fits(x, target, size):
        return F.cross_entropy(F.interpolate(x, *resizing), target, *loss)
    try:
        return upsample_cross_entropy(
            x.clone() if may_change and x.requires_grad and torch.is_grad_enabled() else x,
            target,
            align_corners=bool(resizing.align_corners),
            weight=loss.weight,
            ignore_index=loss.ignore_index,
            label_smoothing=float(loss.label_smoothing),
            reduction=loss.reduction,
        )
    except RuntimeError:
        if is_compiling():
            raise
        # A target that is no class is torch's error, by its own class and words.
        return F.cross_entropy(F.interpolate(x, *resizing), target, *loss)


def _are_logits(x) -> bool:
    """Whether x is what the ops take, on the CPU, for which they are the faster ones."""
    return (
        type(x) in TENSORS
        and _get_tracing_state() is None
        and x.is_cpu
        and x.dtype in DTYPES
        and x.layout is torch.strided
        and x.dim() == 4
        and x.numel() > 0
    )
