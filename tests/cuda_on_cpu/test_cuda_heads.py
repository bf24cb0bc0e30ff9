"""The CUDA kernels of heads, run on the CPU (tests/cuda_on_cpu), and the references in float64."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastseg._core import library
from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import NAMES, load
from tests.head.head_cases import CASES, STRIDES, Case, logits_of

ops = torch.ops.fastseg_cuda_on_cpu
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]


@pytest.fixture(scope="module", autouse=True)
def kernels():
    """The ops, loaded."""
    return load()


def test_every_head_has_a_kernel():
    """Registered by the CUDA bindings, so that the reference runs for none on a GPU."""
    heads = {name for name in library.NAMES if name.startswith("upsample_")}
    assert heads
    assert heads <= set(NAMES)
    for name in heads:
        name = f"fastseg_cuda_on_cpu::{name}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if c.shape[1] < 150], ids=str)
def test_upsample_argmax(case, dtype, align_corners):
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for strides in STRIDES if dtype == torch.float32 else STRIDES[:1]:
        logits = logits_of(case, dtype, strides)
        arguments = (case.size, align_corners, torch.uint8)
        classes, confidence = ops.upsample_argmax_confidence(logits, *arguments)
        full = reference.upsample(logits.double(), case.size, align_corners)
        chosen = full.gather(1, classes.long()[:, None])[:, 0]
        torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=tolerance)
        expected = full.softmax(1).gather(1, classes.long()[:, None])[:, 0]
        torch.testing.assert_close(confidence.double(), expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(ops.upsample_argmax(logits, *arguments), classes)


def test_dtypes_and_values_that_are_no_numbers():
    logits = logits_of(Case((2, 5, 6, 7), (0, 0)), torch.float32)
    for ids in (torch.uint8, torch.int16, torch.int32, torch.int64):
        classes = ops.upsample_argmax(logits, (21, 17), False, ids)
        expected = reference.upsample_argmax(logits, (21, 17), False, ids)
        assert torch.equal(classes, expected)
    for value, size in itertools.product((float("nan"), float("inf")), ((21, 17), (3, 4))):
        logits[0, 3, 2, 4] = value
        classes = ops.upsample_argmax(logits, size, False, torch.uint8)
        assert torch.equal(classes, reference.upsample_argmax(logits, size, False, torch.uint8))
