"""torch's default device changes no result: tensors are made where the arguments are.

``torch.set_default_device`` moves every tensor that is created without a device, and so does
torch.compile while it records CUDA graphs. A default of "meta" shows whatever would move.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastseg._core import library
from fastseg import PairwiseGaussian
from fastseg._core.plain_tensors import outside_modes
from fastseg.nn._batch_norm import FoldedBatchNorm
from tests.core.op_samples import samples
from tests.core.public_calls import public_calls

SAMPLES = samples()
CALLS = public_calls()


def tensors(out) -> list[Tensor]:
    if isinstance(out, (list, tuple)):
        return [t for part in out for t in tensors(part)]
    return [out] if isinstance(out, Tensor) else []


def check(run) -> None:
    expected = tensors(run())
    with torch.device("meta"):
        found = tensors(run())
    assert len(found) == len(expected)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.device == wanted.device
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("i", range(len(SAMPLES)), ids=[s.name for s in SAMPLES])
def test_ops_and_references(i):
    sample = SAMPLES[i]
    check(lambda: getattr(torch.ops.fastseg, sample.name)(*sample.arguments))
    check(lambda: library.REFERENCES[sample.name](*sample.arguments))


@pytest.mark.parametrize("i", range(len(CALLS)), ids=[str(c) for c in CALLS])
def test_public_calls(i):
    check(CALLS[i])


def test_it_takes_no_short_way_from_an_op():
    """Of a mode that looks on ops there is none."""

    class Looks(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    assert outside_modes()
    with torch.device("meta"):
        assert outside_modes()
        with torch.device("cpu"):
            assert outside_modes()
        with Looks():
            assert not outside_modes()
            with torch.device("cpu"):
                assert not outside_modes()


def test_batch_norms_stay_folded():
    bn = torch.nn.BatchNorm2d(3).eval()
    folded = FoldedBatchNorm()
    with torch.no_grad(), torch.device("meta"):
        scale, _ = folded(bn)
        assert scale.device == bn.weight.device
        assert folded(bn)[0] is scale


def test_numbers_of_terms_are_checked():
    with torch.device("meta"), pytest.raises(ValueError, match="compatibility must be finite"):
        PairwiseGaussian(3, [1.0, float("nan")])
