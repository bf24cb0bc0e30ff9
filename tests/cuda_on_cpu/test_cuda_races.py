"""No CUDA kernel leaves two accesses of the same byte unordered, one of them a write."""

from __future__ import annotations

import pytest
import torch

from tests.core.op_samples import Sample, samples
from tests.crf.test_lattice_mean_field import COMPAT, HIGH, problem
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import NAMES
from tests.cuda_on_cpu.tracing import Trace, traced
from tests.pool.pool_cases import CASES, finite_values

pytestmark = pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here")


def of_traced_ops() -> list[Sample]:
    return [s for s in samples() if s.name in NAMES]


def test_every_op_has_a_sample():
    ahead_of_losses = {"upsample_argmax_confidence"}  # upsample_argmax's kernel
    assert set(NAMES) - {s.name for s in of_traced_ops()} <= ahead_of_losses


@pytest.mark.parametrize("thread_order", ["forward", "shuffled"])
@pytest.mark.parametrize("sample", of_traced_ops(), ids=str)
def test_samples(sample, thread_order, monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", thread_order)
    ops = traced()
    with Trace(finds_races=True) as trace:
        getattr(ops, sample.name)(*sample.arguments)
    assert trace.launches
    assert trace.races == []


@pytest.mark.parametrize("quality", [COMPAT, HIGH], ids=["compat", "high"])
@pytest.mark.parametrize("labels", [2, 21, 150])
def test_mean_field(labels, quality):
    """Several tiles, blocks and images, and Q in global memory at last."""
    ops = traced()
    with Trace(finds_races=True) as trace:
        ops.lattice_mean_field(*problem(2, labels, (19, 23)), 2, *quality)
    assert trace.races == []


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooling(case, layout):
    ops = traced()
    x = finite_values(case.shape, torch.float32, layout, seed=1)
    with Trace(finds_races=True) as trace:
        values, codes = ops.max_pool2d(x, *case.window, case.ceil_mode)
        ops.max_pool2d_backward(values, codes, x.shape[2:], *case.window)
    assert trace.races == []


@pytest.mark.parametrize("size", [(300,), (40, 33), (7, 20, 18)], ids=str)
def test_distance_transform(size):
    ops = traced()
    with Trace(finds_races=True) as trace:
        ops.distance_transform(torch.rand(2, *size) > 0.1, [1.0] * len(size))
    assert trace.races == []
