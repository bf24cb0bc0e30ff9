"""The op fastseg.distance_transform: exact Euclidean distances to the zeros of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.tensor_checks import FLOATS, check_dense, check_tensors

ops = torch.ops.fastseg
OP = "fastseg::distance_transform"
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
MASKS = (torch.bool, *INTEGERS, torch.uint16, torch.uint32, torch.uint64, *FLOATS)
MOST_AXES = 3


def distance_transform(
    mask: Tensor,
    dims: int = 2,
    *,
    spacing: float | Sequence[float] | None = None,
    squared: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes the exact Euclidean distance of each element to the nearest zero of its image.

    It is ``scipy.ndimage.distance_transform_edt`` for batches: elements that are zero get 0, all
    others the distance to the nearest element that is. Whatever a mask holds, the time grows with
    the number of elements, not with the distances. Deterministic, for any number of threads.
    Distances have no gradient, whatever the mask has, as comparisons have none.

    Where all axes have one spacing, squared distances are computed in integers: with a spacing of
    1 they are exact (in float32 up to 2^24), and distances are these integers' roots, rounded once.
    Otherwise they are computed in float64.

    The CUDA kernels have not run on a GPU yet; there no axis may be longer than 2^19.

    Args:
        mask: (..., W), (..., H, W) or (..., D, H, W), as dims says; any leading dimensions are a
            batch. Bool, any integer, float32, float64, float16 or bfloat16; NaN is not zero.
        dims: number of trailing dimensions that are an image: 1, 2 or 3.
        spacing: distance between neighbours: one number, or one for each axis of an image in the
            order of mask's dimensions; positive and finite. None is 1.
        squared: whether the squared distances are returned.
        dtype: dtype of the distances, float32 or float64.

    Returns:
        The distances, of mask's shape, contiguous. In an image without any zero all are infinite,
        where scipy's are distances to an element outside of the image.

    Raises:
        TypeError: mask is no tensor, dims or spacing are no numbers, or squared is no bool.
        RuntimeError: a mask of other dtypes or of fewer dimensions than dims; values that dims,
            spacing or dtype cannot have.
    """
    if type(mask) is not Tensor:
        check_tensors(OP, mask=mask)
    steps = spacing_of_axes(dims, spacing)
    torch._check(
        dtype in (torch.float32, torch.float64),
        lambda: f"{OP}: dtype must be float32 or float64, got {dtype}",
    )
    if not isinstance(squared, bool):
        raise TypeError(f"{OP}: squared must be a bool, got {type(squared).__name__}")
    if mask.requires_grad:
        mask = mask.detach()
    return call(_distance_transform, (mask,), steps, squared, dtype == torch.float64)


def spacing_of_axes(dims: int, spacing: float | Sequence[float] | None) -> list[float]:
    """Returns the spacing of each of an image's dims axes; raises for what dims cannot be."""
    if isinstance(dims, bool) or not isinstance(dims, int):
        raise TypeError(f"{OP}: dims must be an int, got {type(dims).__name__}")
    torch._check(
        1 <= dims <= MOST_AXES, lambda: f"{OP}: dims must be 1, 2 or {MOST_AXES}, got {dims}"
    )
    if spacing is None:
        return [1.0] * dims
    try:
        if isinstance(spacing, (bool, str)):
            raise TypeError
        steps = [float(spacing)] * dims if isinstance(spacing, Real) else list(map(float, spacing))
    except (TypeError, ValueError):
        raise TypeError(
            f"{OP}: spacing must be a number or {dims} of them, got {spacing!r}"
        ) from None
    torch._check(
        len(steps) == dims,
        lambda: f"{OP}: spacing must be a number or one for each of {dims} axes, got {spacing}",
    )
    return steps


def _fake(mask, spacing, squared=False, in_float64=False):
    check_dense(OP, "mask", mask)
    axes = len(spacing)
    torch._check(
        1 <= axes <= MOST_AXES,
        lambda: f"{OP}: spacing must hold a number for each of 1, 2 or 3 axes, got {axes}",
    )
    torch._check(
        mask.dim() >= axes,
        lambda: f"{OP}: mask must have at least {axes} dimensions, got shape {tuple(mask.shape)}",
    )
    torch._check(
        all(step > 0 and math.isfinite(step) for step in spacing),
        lambda: f"{OP}: spacing must be positive and finite, got {tuple(spacing)}",
    )
    torch._check(
        mask.dtype in MASKS,
        lambda: (
            f"{OP}: mask must be bool, of integers, or float32, float64, float16 or bfloat16, "
            f"got {mask.dtype}"
        ),
    )
    dtype = torch.float64 if in_float64 else torch.float32
    return torch.empty(mask.shape, dtype=dtype, device=mask.device)


def _reference(mask, spacing, squared=False, in_float64=False):
    _fake(mask, spacing, squared, in_float64)
    return reference.distance_transform(mask, spacing, squared, in_float64)


def _vmap(op, info, in_dims, mask, *arguments):
    return op(mask.movedim(in_dims[0], 0), *arguments), 0


define(
    "distance_transform(Tensor mask, float[] spacing, bool squared=False, bool in_float64=False)"
    " -> Tensor",
    reference=_reference,
    fake=_fake,
    vmap=_vmap,
)
_distance_transform = ops.distance_transform.default
