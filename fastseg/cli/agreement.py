"""How near two outputs of a network are, beside the rounding of their dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""What rounding may change in a network of many layers, as a share of the largest output."""

TIES = 1e-3
"""Share of classes, or other integers, that rounding may change."""

MOST_TIES = 0.1
"""Largest share of values that near-ties in poolings may change, if they do in torch as well."""


@dataclass(frozen=True)
class Agreement:
    """The differences of all tensors of two outputs.

    Attributes:
        difference: the largest of floating-point values; infinite where a NaN or an infinity
            stands in one alone; None where there are no floating-point values.
        largest: the largest finite absolute value of the first output, or None.
        off: the share of floating-point values that differ by more than rounding, in the tensor
            with most of them, or None.
        other: the share of integers that differ, in the same way; None where there are none.
        problem: why the outputs cannot be compared, or None.
    """

    difference: float | None = None
    largest: float | None = None
    off: float | None = None
    other: float | None = None
    problem: str | None = None

    def within(self, rounding: Agreement | None = None) -> bool:
        """Whether the outputs are the same but for rounding.

        Args:
            rounding: the agreement of torch's two layouts. A rounding may decide a near-tie in a
                pooling otherwise, whose unpooling then puts a value elsewhere: twice as many of
                these as in torch are no fault.
        """
        torchs = rounding or Agreement()
        return (
            self.problem is None
            and (self.off or 0) <= min(MOST_TIES, 2 * (torchs.off or 0))
            and (self.other or 0) <= max(TIES, min(MOST_TIES, 2 * (torchs.other or 0)))
        )

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        texts = []
        if self.difference is not None:
            texts.append(
                f"differ by at most {self.difference:.1e}, the largest output is {self.largest:.1e}"
            )
        if self.off:
            texts.append(f"{self.off:.2%} of the values differ by more than rounding")
        if self.other is not None:
            texts.append(f"{self.other:.2%} of the integers differ")
        return "; ".join(texts) or "are empty"


def tensors_of(output: object) -> list[Tensor]:
    """Returns the tensors of an output: a tensor, or a dict, list or tuple of them, nested or not.

    Raises:
        ValueError: there are none.
    """
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if not found:
        raise ValueError(f"the model's output has no tensors, it is a {type(output).__name__}")
    return found


def agreement(expected: Sequence[Tensor], got: Sequence[Tensor]) -> Agreement:
    """Compares the tensors of two outputs in their order."""
    if len(expected) != len(got):
        return Agreement(problem=f"{len(got)} tensors in place of {len(expected)}")
    parts = []
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        if a.shape != b.shape or _is_exact(a) != _is_exact(b):
            return Agreement(
                problem=f"tensor {number} is {_described(b)} in place of {_described(a)}"
            )
        parts.append(_compared(a.detach().cpu(), b.detach().cpu()))

    def worst(name: str) -> float | None:
        return max((v for part in parts if (v := getattr(part, name)) is not None), default=None)

    return Agreement(*map(worst, ("difference", "largest", "off", "other")))


def _compared(a: Tensor, b: Tensor) -> Agreement:
    if not a.numel():
        return Agreement()
    if _is_exact(a):
        return Agreement(other=(a != b).double().mean().item())
    tolerance = ROUNDING.get(a.dtype, ROUNDING[torch.float32])
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    differences = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    largest = torch.where(a.isfinite(), a.abs(), 0.0).max().item()
    off = (differences > tolerance * largest).double().mean().item()
    return Agreement(differences.max().item(), largest, off)


def _is_exact(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def _described(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
