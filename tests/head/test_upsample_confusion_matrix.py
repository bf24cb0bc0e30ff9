"""Counts from small logits, against the class map and bincount."""

from __future__ import annotations

import pytest
import torch

import fastseg
from fastseg import reference
from tests.head.head_cases import CASES, STRIDES, Case, logits_of

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
ops = torch.ops.fastseg
SMALL = Case((2, 5, 6, 7), (21, 17))


def target_of(case: Case, dtype=torch.int64, ignored=None):
    """Random ids of the classes, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(3)
    shape = (case.shape[0], *case.size)
    target = torch.randint(0, case.shape[1], shape, generator=generator)
    if ignored is not None:
        target[torch.rand(shape, generator=generator) < 0.2] = ignored
    return target.to(dtype)


def by_bincount(logits, target, align_corners, ignored):
    ids = torch.int16 if logits.shape[1] > 256 else torch.uint8
    size, classes = target.shape[1:], logits.shape[1]
    found = fastseg.upsample_argmax(logits, size, align_corners=align_corners, dtype=ids)
    pairs = target.long() * classes + found.long()
    if ignored is not None:
        pairs = pairs[target != ignored]
    return torch.bincount(pairs.flatten(), minlength=classes**2).view(classes, classes)


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts(case, align_corners, simd_level):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        logits, target = logits_of(case, dtype), target_of(case, ignored=-100)
        counts = fastseg.upsample_confusion_matrix(
            logits, target, align_corners=align_corners, ignore_index=-100
        )
        assert torch.equal(counts, by_bincount(logits, target, align_corners, -100))
        assert counts.sum() == (target != -100).sum()


@pytest.mark.parametrize("strides", STRIDES)
def test_strides_and_dtypes(strides):
    logits = logits_of(SMALL, torch.float32, strides)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        target = target_of(SMALL, dtype)
        expected = by_bincount(logits, target, False, None)
        wide = target.repeat(1, 2, 2)[:, ::2, ::2].contiguous().mT.contiguous().mT
        for form in (target, wide):
            counts = fastseg.upsample_confusion_matrix(logits, form)
            assert torch.equal(counts, by_bincount(logits, form, False, None))
        assert counts.sum() == expected.sum()


def test_reference():
    logits, target = logits_of(SMALL, torch.float64), target_of(SMALL, ignored=255)
    for align_corners in (False, True):
        counts = ops.upsample_confusion_matrix(logits, target, align_corners, 255)
        expected = reference.upsample_confusion_matrix(logits, target, align_corners, 255)
        assert torch.equal(counts, expected)


def test_any_number_of_threads():
    case = Case((3, 19, 17, 23), (136, 184))
    logits, target = logits_of(case, torch.float32), target_of(case)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(fastseg.upsample_confusion_matrix(logits, target))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(counts, found[0]) for counts in found)


def test_opcheck_and_compile():
    logits, target = logits_of(SMALL, torch.float32), target_of(SMALL)
    torch.library.opcheck(ops.upsample_confusion_matrix.default, (logits, target, False, 3))
    compiled = torch.compile(fastseg.upsample_confusion_matrix, fullgraph=True)
    expected = fastseg.upsample_confusion_matrix(logits, target)
    assert torch.equal(compiled(logits, target), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4, 5, 5)}, r"logits must have the shape \(N, C, h, w\)"),
        ({"target": torch.zeros(2, 9, 9)}, "target must hold integer class ids"),
        ({"target": torch.zeros(3, 9, 9).long()}, r"target must have the shape \(N, H, W\)"),
        ({"target": torch.full((2, 9, 9), 4)}, "target must hold ids 0 to 3, got 4 to 4"),
        ({"target": torch.full((2, 9, 9), -7)}, "target must hold ids 0 to 3, got -7 to -7"),
        (
            {"target": torch.full((2, 9, 9), 9).byte(), "ignore_index": 255},
            "got 9 to 9 where it is not ignore_index",
        ),
    ],
    ids=str,
)
def test_bad_input(change, message):
    target = torch.zeros(2, 9, 9, dtype=torch.int64)
    arguments = {"logits": torch.zeros(2, 4, 3, 3), "target": target, **change}
    with pytest.raises(RuntimeError, match=message):
        fastseg.upsample_confusion_matrix(**arguments)
