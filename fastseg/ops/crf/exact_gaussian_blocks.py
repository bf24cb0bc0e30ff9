"""The op that sorts points into blocks for the exact Gaussian filter: once, for many filters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import backend, define, define_triton
from fastseg._core.tensor_checks import check_dense, check_device
from fastseg._core.vmap import in_front

OP = "fastseg::exact_gaussian_blocks"
BLOCK = 64
"""Number of points of a block on the CPU."""

LEAF = 16
"""Number of points of a leaf of the CPU's blocks, which has a box of its own."""

DEFAULT_CUTOFF = 3e-5
"""The cutoff that keeps the relative L2 error of filtered images below 1e-5: 2e-6 was measured on a
photo of 500 x 375 pixels at bandwidths of 80/13, 49/5 and 67/3, where the largest error of a
pixel's sum of weights was 9e-4."""


class Form(NamedTuple):
    """What a tensor of a device's blocks looks like: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def forms(features: Tensor) -> list[Form]:
    """The blocks that the op makes of features (B, d, N) where they lie, or would lie.

    Every tensor begins with B. There is none where the reference runs, which sums all pairs of
    points in any order.
    """
    kind = features.device.type
    kernels = backend("exact_gaussian_blocks", kind) if kind in ("cpu", "cuda") else "reference"
    if kernels == "reference":
        return []
    if kernels == "Triton":
        from fastseg.kernels.crf import exact_gaussian_filter as kernels

        return [Form(*form) for form in kernels.block_forms(features)]
    b, d, n = features.shape
    padded = (n + BLOCK - 1) // BLOCK * BLOCK
    box = Form((b, d, padded // LEAF), features.dtype)
    return [Form((b, padded), torch.int32), Form((b, padded, d), features.dtype), box, box]


def check_features(op: str, features: Tensor, cutoff: float) -> None:
    """Raises RuntimeError for features of a wrong shape or layout, and a cutoff out of range."""
    check_dense(op, "features", features)
    torch._check(
        features.dim() == 3,
        lambda: f"{op}: features must have the shape (B, d, N), got {tuple(features.shape)}",
    )
    d = features.shape[1]
    torch._check(d >= 1, lambda: f"{op}: features must have d >= 1 dimensions, got {d}")
    torch._check(0 <= cutoff < 1, lambda: f"{op}: cutoff must be in [0, 1), got {cutoff}")


def check_blocks(op: str, features: Tensor, blocks: Sequence[Tensor]) -> None:
    """Raises RuntimeError for blocks that are not of features of that shape on that device."""
    expected = forms(features)
    torch._check(
        len(blocks) == len(expected),
        lambda: (
            f"{op}: blocks must be None or exact_gaussian_blocks' {len(expected)} tensors, "
            f"got {len(blocks)}"
        ),
    )
    for i, (t, form) in enumerate(zip(blocks, expected, strict=True)):
        check_device(op, f"blocks[{i}]", t, "features", features)
        torch._check(
            t.shape == form.shape and t.dtype == form.dtype,
            lambda i=i, t=t, form=form: (
                f"{op}: blocks[{i}] must be {form.dtype} of shape {tuple(form.shape)}, "
                f"got {t.dtype} of {tuple(t.shape)}"
            ),
        )


def _check(features: Tensor, cutoff: float) -> None:
    check_features(OP, features, cutoff)
    torch._check(
        features.dtype in (torch.float32, torch.float64),
        lambda: f"{OP}: features must be float32 or float64, got {features.dtype}",
    )


def _fake(features, cutoff=DEFAULT_CUTOFF) -> list[Tensor]:
    _check(features, cutoff)
    return [features.new_empty(form.shape, dtype=form.dtype) for form in forms(features)]


def _reference(features, cutoff=DEFAULT_CUTOFF) -> list[Tensor]:
    _check(features, cutoff)
    return reference.exact_gaussian_blocks(features, cutoff)


def _triton(features, cutoff=DEFAULT_CUTOFF) -> list[Tensor]:
    from fastseg.kernels.crf import exact_gaussian_filter as kernels

    _check(features, cutoff)
    return kernels.exact_gaussian_blocks(features, cutoff)


def _vmap(op, info, in_dims, features, cutoff):
    front = in_front(info.batch_size, in_dims[0], features)
    blocks = op(front.flatten(0, 1), cutoff)
    return [t.unflatten(0, front.shape[:2]) for t in blocks], [0] * len(blocks)


define(
    "exact_gaussian_blocks(Tensor features, float cutoff=3e-5) -> Tensor[]",
    reference=_reference,
    fake=_fake,
    vmap=_vmap,
)
define_triton("exact_gaussian_blocks", _triton)
