"""The terms of a mean field: what an op's lists stand for, and that each is checked once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastseg import PairwiseBilateral, PairwiseFeatures, PairwiseGaussian, dense_crf
from fastseg._core.mean_field_terms import (
    FeatureGaussian,
    PositionGaussian,
    gaussian_of,
    lists_of,
    terms_of,
)
from fastseg._core.pairwise import NORMALIZATIONS
from fastseg.ops.crf import checks, problem

SPATIAL = (5, 6)
ops = torch.ops.fastseg


def lists() -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Kernels of both kinds, compatibilities of all three, every normalisation."""
    kernels = [torch.ones(2), torch.rand(2, 3, *SPATIAL), torch.rand(1, 1, *SPATIAL), torch.ones(2)]
    compatibility = [torch.tensor(1.0), torch.ones(4), torch.ones(4, 4), torch.tensor(2.0)]
    return kernels, compatibility, list(range(len(NORMALIZATIONS)))


def test_lists_become_terms_and_lists_again():
    kernels, compatibility, normalization = lists()
    terms = terms_of(kernels, compatibility, normalization)
    kinds = [PositionGaussian, FeatureGaussian, FeatureGaussian, PositionGaussian]
    assert [type(term.gaussian) for term in terms] == kinds
    assert [term.normalization for term in terms] == list(NORMALIZATIONS)
    back = lists_of(terms)
    assert all(a is b for a, b in zip(back[0], kernels, strict=True))
    assert all(a is b for a, b in zip(back[1], compatibility, strict=True))
    assert back[2] == normalization


@pytest.mark.parametrize("kernel", [torch.ones(2), torch.ones(1, 3, *SPATIAL)], ids=["sigma", "f"])
def test_a_dimension_of_vmap_changes_no_kind(kernel):
    assert type(gaussian_of(kernel[None], mapped=True)) is type(gaussian_of(kernel))


@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
def test_a_call_checks_each_term_once(monkeypatch, quality):
    calls = []
    for name in ("check_gaussian", "check_compatibility"):
        check = getattr(checks, name)

        def counted(*args, check=check, name=name, **options):
            calls.append(name)
            return check(*args, **options)

        for module in (checks, problem):
            monkeypatch.setattr(module, name, counted)
    terms = [
        PairwiseGaussian(2),
        PairwiseBilateral(5, 13, torch.ones(4)),
        PairwiseFeatures(torch.rand(1, 3, *SPATIAL), torch.ones(4, 4)),
    ]
    dense_crf(torch.rand(1, 4, *SPATIAL), torch.rand(1, 3, *SPATIAL), terms, quality=quality)
    assert sorted(calls) == ["check_compatibility"] * 3 + ["check_gaussian"] * 3


BAD = {
    "bandwidths": (0, torch.ones(3), r"kernels\[0\] must hold 2 bandwidths, got 3"),
    "rank": (0, torch.ones(3, 3), r"kernels\[0\] must be bandwidths \(2,\) or features \(2 or 1"),
    "size": (1, torch.ones(2, 3, 5, 7), r"kernels\[1\] must be .*got shape \(2, 3, 5, 7\)"),
    "batch": (1, torch.ones(3, 3, *SPATIAL), r"kernels\[1\] must be .*2 or 1, d, 5, 6"),
    "no features": (2, torch.ones(2, 0, *SPATIAL), r"kernels\[2\] must be"),
    "dtype": (2, torch.ones(2).double(), r"kernels\[2\] must have unary's dtype torch.float32"),
    "device": (3, torch.ones(2, device="meta"), r"kernels\[3\] must be on unary's device cpu"),
}


@pytest.mark.parametrize("quality", [0, 1, 2], ids=["compat", "high", "exact"])
@pytest.mark.parametrize("name", BAD)
def test_the_op_refuses_a_term_that_does_not_fit(name, quality):
    i, kernel, message = BAD[name]
    kernels, compatibility, normalization = lists()
    kernels[i] = kernel
    with pytest.raises(RuntimeError, match=f"fastseg::mean_field: {message}"):
        ops.mean_field(
            torch.rand(2, 4, *SPATIAL), kernels, compatibility, normalization, 1, quality
        )
