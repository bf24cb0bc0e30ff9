"""The ops fastseg.upsample_argmax and fastseg.upsample_argmax_confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.formulas import compute_dtype
from fastseg._core.library import call, define
from fastseg._core.logits import check_ids, check_logits, check_size
from fastseg._core.tensor_checks import check_tensors
from fastseg._core.vmap import by_planes

ops = torch.ops.fastseg


@overload
def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
    return_confidence: Literal[False] = False,
) -> Tensor: ...


@overload
def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
    return_confidence: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = False,
    dtype: torch.dtype = torch.uint8,
    return_confidence: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes the class map of bilinearly upsampled logits, which are never stored.

    ``F.interpolate(logits, size, mode="bilinear").argmax(1)`` in one op: each pixel's class, the
    first of equal ones, NaN above all others as in ``argmax``. Logits of any strides are read where
    they are, float16 and bfloat16 computed in float32. The result is that of torch's two ops in
    float32 wherever the two largest logits differ by more than rounding. There is no gradient.

    Args:
        logits: (N, C, h, w); float32, float64, float16 or bfloat16.
        size: (H, W) of the class map, larger or smaller than (h, w).
        align_corners: whether the corner pixels' centres are those of the logits, as in
            ``F.interpolate``.
        dtype: of the class map: uint8 for up to 256 classes, int16, int32 or int64.
        return_confidence: also returns the largest probability, the softmax of the chosen class.

    Returns:
        The class map (N, H, W), or this and the confidence (N, H, W), float32 or, for float64
        logits, float64.

    Raises:
        TypeError: logits is no tensor.
        RuntimeError: logits or a size without a pixel, a dtype that is none of these or does not
            hold as many classes.
    """
    check_tensors("fastseg::upsample_argmax", logits=logits)
    logits = logits.detach()
    if return_confidence:
        return call(_upsample_argmax_confidence, (logits,), size, align_corners, dtype)
    return call(_upsample_argmax, (logits,), size, align_corners, dtype)


def _check(op, logits, size, dtype):
    check_logits(op, logits)
    check_ids(op, dtype, logits.shape[1])
    check_size(op, size)


def _fake(logits, size, align_corners, dtype):
    _check("fastseg::upsample_argmax", logits, size, dtype)
    return logits.new_empty((logits.shape[0], *size), dtype=dtype)


def _fake_confidence(logits, size, align_corners, dtype):
    _check("fastseg::upsample_argmax_confidence", logits, size, dtype)
    shape = (logits.shape[0], *size)
    confidence = logits.new_empty(shape, dtype=compute_dtype(logits.dtype))
    return logits.new_empty(shape, dtype=dtype), confidence


def _reference(logits, size, align_corners, dtype):
    _check("fastseg::upsample_argmax", logits, size, dtype)
    return reference.upsample_argmax(logits, size, align_corners, dtype)


def _reference_confidence(logits, size, align_corners, dtype):
    _check("fastseg::upsample_argmax_confidence", logits, size, dtype)
    return reference.upsample_argmax_confidence(logits, size, align_corners, dtype)


_upsample_argmax = define(
    "upsample_argmax(Tensor logits, SymInt[2] size, bool align_corners, ScalarType dtype)"
    " -> Tensor",
    reference=_reference,
    standard=_reference,
    fake=_fake,
    vmap=by_planes(1),
)

_upsample_argmax_confidence = define(
    "upsample_argmax_confidence(Tensor logits, SymInt[2] size, bool align_corners,"
    " ScalarType dtype) -> (Tensor, Tensor)",
    reference=_reference_confidence,
    standard=_reference_confidence,
    fake=_fake_confidence,
    vmap=by_planes(1),
)
