"""Logits, targets and torch's two ops, for the tests of losses of upsampled logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 3e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


class LossCase(NamedTuple):
    """The sizes of a loss: N, C, (h, w) and (H, W)."""

    batch: int
    classes: int
    small: tuple[int, int]
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.batch}x{self.classes}-{self.small}-{self.size}"


CASES = (
    LossCase(2, 5, (9, 17), (65, 129)),  # whole blocks of cells and a part of one
    LossCase(1, 21, (5, 6), (37, 45)),
    LossCase(2, 3, (7, 7), (7, 7)),
    LossCase(1, 4, (30, 40), (13, 9)),  # smaller
    LossCase(3, 2, (3, 2), (100, 90)),  # more than 16 pixels between two logits
    LossCase(1, 3, (1, 1), (20, 50)),
    LossCase(1, 2, (4, 40), (9, 640)),
    LossCase(1, 1, (3, 4), (6, 9)),
    LossCase(1, 3, (6, 5), (1, 1)),
    LossCase(0, 3, (4, 4), (9, 9)),
)


def tensors(case: LossCase, dtype: torch.dtype = torch.float32, seed: int = 0):
    """Logits and int64 targets, of which a fifth is ignored."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.classes, *case.small)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    pixels = (case.batch, *case.size)
    target = torch.randint(0, case.classes, pixels, generator=generator)
    target[torch.rand(pixels, generator=generator) < 0.2] = IGNORED
    return logits.to(dtype), target


def upsampled(logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
    """Logits of full size."""
    if logits.shape[0] == 0:  # torch refuses to upsample nothing
        return logits.new_zeros((0, logits.shape[1], *target.shape[1:])) + logits.sum()
    return F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=align_corners)


def torch_loss(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool = False,
    weight_map: Tensor | None = None,
    reduction: str = "mean",
    **options,
) -> Tensor:
    """F.cross_entropy of upsampled logits, and what weight_map makes of it."""
    full, target = upsampled(logits, target, align_corners), target.long()
    if weight_map is None:
        return F.cross_entropy(full, target, reduction=reduction, **options)
    losses = F.cross_entropy(full, target, reduction="none", **options) * weight_map
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    kept = target != options["ignore_index"]
    weight = options.get("weight")
    weight = full.new_ones(full.shape[1]) if weight is None else weight
    return losses.sum() / (weight[target[kept]] * weight_map[kept]).sum()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within the tolerance of the largest value; NaN where NaN is expected."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = max(1.0, float(expected.nan_to_num(0, 0, 0).abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=True)


def assert_grad_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within the tolerance of the largest gradient, or of 0.01 where all nearly cancel."""
    assert actual.shape == expected.shape
    if expected.numel():
        scale = float(expected.abs().max())
        error = float((actual.double() - expected.double()).abs().max())
        assert error <= tolerance * max(scale, 1e-2), (error, scale)
