"""What a CUDA graph may capture: no copy from the host, nothing that is kept for other calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastseg import PairwiseGaussian
from fastseg._core.devices import is_captured
from fastseg.nn import _batch_norm
from fastseg.nn._batch_norm import FoldedBatchNorm
from fastseg.ops.crf import problem


@pytest.mark.parametrize(
    "compatibility", [3, [1.5, -2, 0.25], [[1, 2, 3], [4, 5, 6.5], [0, 1e-3, -7]]]
)
def test_numbers_are_filled_in(monkeypatch, compatibility):
    def copy(*_, **options):
        raise AssertionError("copied")

    unary, term = torch.rand(1, 3, 4, 5), PairwiseGaussian(2, compatibility)
    expected = problem._compatibility(term, unary)
    monkeypatch.setattr(problem, "is_captured", lambda t: True)
    for method in ("to", "copy_"):
        monkeypatch.setattr(torch.Tensor, method, copy)
    found = problem._compatibility(term, unary)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype


@torch.no_grad()
def test_a_batch_norm_is_folded_anew(monkeypatch):
    """A graph that read what is kept would read freed memory once the weights have changed."""
    bn, folded = nn.BatchNorm2d(3).eval(), FoldedBatchNorm()
    kept = folded(bn)
    assert folded(bn) is kept is folded.kept(bn)
    with monkeypatch.context() as patch:
        patch.setattr(_batch_norm, "is_captured", lambda t: True)
        captured = folded(bn)
        assert folded.kept(bn) is None
        bn.weight.fill_(2)
        anew = folded(bn)
    for ours, theirs in zip(captured, kept, strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    assert torch.equal(anew[0], 2 * kept[0])
    after = folded(bn)
    assert torch.equal(after[0], anew[0])
    assert after[0] is not anew[0], "which is there when the graph is replayed"


def test_only_streams_of_a_gpu_are_captured():
    for device in ("cpu", "meta"):
        assert not is_captured(torch.zeros(1, device=device))
