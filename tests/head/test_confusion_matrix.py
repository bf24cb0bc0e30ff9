"""fastseg.confusion_matrix beside a count pixel by pixel, over dtypes, layouts and bad ids."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.export import export

import fastseg
from fastseg import reference
from tests.core.memory_layouts import layouts

IDS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
SHAPES = ((), (0,), (1,), (63,), (65,), (3, 64), (2, 130, 131), (1, 2, 2, 70))
VOID = (None, 0, 1, 77, -1, 255)
"""Ignored ids: of a class, of none, that of unsigned bytes, and one that they cannot hold."""


def maps(shape, classes, prediction_dtype, target_dtype, seed=0):
    """A prediction and a truth with runs of all lengths, and noise; every class that fits."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for dtype in (prediction_dtype, target_dtype):
        most = 2 if dtype == torch.bool else min(classes, torch.iinfo(dtype).max + 1)
        ids = torch.randint(most, shape, generator=generator)
        if ids.dim() > 1:
            ids[..., : ids.shape[-2] // 2, :] = ids.flatten()[0]
            ids[..., ::3] = ids[..., ::3].div(2, rounding_mode="floor")
        found.append(ids.to(dtype))
    return found


def counted(prediction, target, classes, ignore_index=None):
    """The counts, pixel by pixel."""
    counts = np.zeros((classes, classes), np.int64)
    pairs = zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True)
    for t, p in pairs:
        if ignore_index is None or t != ignore_index:
            counts[int(t), int(p)] += 1
    return torch.from_numpy(counts)


@pytest.mark.parametrize("target_dtype", IDS, ids=str)
@pytest.mark.parametrize("prediction_dtype", IDS, ids=str)
def test_every_pair_of_dtypes(prediction_dtype, target_dtype, simd_level):
    for shape, classes in itertools.product(SHAPES, (2, 19, 130)):
        prediction, target = maps(shape, classes, prediction_dtype, target_dtype)
        expected = counted(prediction, target, classes)
        assert torch.equal(fastseg.confusion_matrix(prediction, target, classes), expected)
        assert torch.equal(reference.confusion_matrix(prediction, target, classes), expected)


@pytest.mark.parametrize("ignore_index", VOID)
@pytest.mark.parametrize("dtype", IDS[:-1], ids=str)
def test_ignored_pixels(dtype, ignore_index, simd_level):
    """What is predicted on them may be anything, and they may be the ones of a class."""
    info = torch.iinfo(dtype)
    for classes in (1, 2, 19, 100):
        prediction, target = maps((3, 40, 41), classes, dtype, dtype)
        if ignore_index is not None and info.min <= ignore_index <= info.max:
            target[:, 5:9, 3:] = ignore_index
            target[1] = ignore_index
            prediction[target == ignore_index] = info.max
            prediction[1, 20:] = info.min
        actual = fastseg.confusion_matrix(prediction, target, classes, ignore_index=ignore_index)
        assert torch.equal(actual, counted(prediction, target, classes, ignore_index))


@pytest.mark.parametrize("classes", [1, 63, 64, 65, 127, 128, 129, 253, 254, 255, 256, 257, 1000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64], ids=str)
def test_numbers_of_classes(classes, dtype, simd_level):
    """The first and the last id, at which kernels and copies of the counts change."""
    prediction, target = maps((2, 70, 65), classes, dtype, torch.int64)
    last = min(classes - 1, torch.iinfo(dtype).max)
    prediction[0, :3], target[0, 1:4] = last, classes - 1
    actual = fastseg.confusion_matrix(prediction, target, classes)
    assert torch.equal(actual, counted(prediction, target, classes))


@pytest.mark.parametrize("classes", [5, 200, 300])
def test_bad_ids(classes, simd_level):
    """Every id that is no class, anywhere in a map, of either map; never one that is."""
    for dtype, width, place in itertools.product(IDS[:-1], (1, 64, 200), (0, -1)):
        info = torch.iinfo(dtype)
        bad = {-1, classes, classes + 1, 254, 255, 256, info.min, info.max, classes - 256}
        for value in (v for v in bad if info.min <= v <= info.max and not 0 <= v < classes):
            good, wrong = (torch.zeros(3, width, dtype=dtype) for _ in range(2))
            wrong[place, place] = value
            low, high = min(0, value), max(0, value)
            if width == 1:
                wrong[:], low, high = value, value, value
            words = rf"must hold ids 0 to {classes - 1}, got {low} to {high}\b"
            for function in (fastseg.confusion_matrix, reference.confusion_matrix):
                with pytest.raises(RuntimeError, match=f"confusion_matrix: prediction {words}"):
                    function(wrong, good, classes)
                with pytest.raises(RuntimeError, match=f"confusion_matrix: target {words}"):
                    function(good, wrong, classes)
            same = fastseg.confusion_matrix(wrong, wrong, classes, ignore_index=value)
            assert same.sum() == (wrong != value).sum()


def test_bad_ids_of_ignored_pixels_alone_are_not_named():
    prediction, target = torch.tensor([77, 3, 0]), torch.tensor([9, 0, 1])
    with pytest.raises(RuntimeError, match=r"prediction .* 0 to 2, got 0 to 3 where the target is"):
        fastseg.confusion_matrix(prediction, target, 3, ignore_index=9)


@pytest.mark.parametrize("shape", [(7,), (5, 66), (3, 4, 70), (2, 3, 5, 67)])
def test_layouts(shape):
    """Both maps wherever their elements may lie, alike and not."""
    prediction, target = maps(shape, 19, torch.uint8, torch.int64)
    pairs = list(zip(layouts(prediction), layouts(target), strict=True))
    for i, ((what, p), (_, t)) in enumerate(pairs):
        for other in (t, target, pairs[i - 1][1][1]):
            actual = fastseg.confusion_matrix(p, other, 19)
            assert torch.equal(actual, counted(p, other, 19)), what


def test_large_maps_of_one_value():
    """Expanded, of several tasks' pixels."""
    prediction, target = (torch.tensor([[k]], dtype=torch.uint8) for k in (1, 2))
    size = (1 << 10, (1 << 10) + 3)
    counts = fastseg.confusion_matrix(prediction.expand(size), target.expand(size), 3)
    assert counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, size[0] * size[1], 0]]


@pytest.mark.parametrize("classes", [19, 200])
def test_any_number_of_threads_counts_the_same(classes):
    prediction, target = maps((4, 700, 701), classes, torch.uint8, torch.int16)
    expected = reference.confusion_matrix(prediction, target, classes)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(fastseg.confusion_matrix(prediction, target, classes), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("ignore_index", [None, 3])
def test_opcheck(ignore_index):
    prediction, target = maps((2, 5, 6), 4, torch.uint8, torch.int64)
    op = torch.ops.fastseg.confusion_matrix.default
    torch.library.opcheck(op, (prediction, target, 4, ignore_index))
    torch.library.opcheck(op, (prediction.mT, target.mT[:], 7))


class Score(torch.nn.Module):
    def forward(self, logits, target):
        counts = fastseg.confusion_matrix(logits.argmax(1), target, 4, ignore_index=255)
        return counts, counts.diagonal().sum() / counts.sum()


def test_compile_and_export():
    target = torch.randint(4, (2, 8, 9), dtype=torch.uint8)
    target[0, :2] = 255
    arguments = (torch.randn(2, 4, 8, 9), target)
    expected = Score()(*arguments)
    compiled = torch.compile(Score(), fullgraph=True, backend="aot_eager")
    for module in (compiled, export(Score(), arguments).module()):
        for actual, e in zip(module(*arguments), expected, strict=True):
            assert torch.equal(actual, e)
    with pytest.raises(RuntimeError, match="target must hold ids 0 to 3, got 0 to 7"):
        compiled(arguments[0], target.clamp(max=7))


def test_vmap():
    prediction, target = maps((5, 6, 7), 4, torch.uint8, torch.int64)
    count = lambda p, t: fastseg.confusion_matrix(p, t, 4)  # noqa: E731
    actual = torch.vmap(count, (1, 1))(prediction, target)
    slices = zip(prediction.unbind(1), target.unbind(1), strict=True)
    assert torch.equal(actual, torch.stack([count(p, t) for p, t in slices]))


IMAGE = torch.zeros(2, 3, dtype=torch.int64)
BAD = {
    "prediction of floats": ((IMAGE.float(), IMAGE, 3), r"prediction must hold integer .* got "),
    "target of floats": ((IMAGE, IMAGE.double(), 3), r"target must hold integer class ids .* got "),
    "uint16": ((IMAGE, IMAGE.to(torch.uint16), 3), r"target must hold integer class ids"),
    "shapes": ((IMAGE, IMAGE.mT, 3), r"one shape, got \(2, 3\) and \(3, 2\)"),
    "as many elements": ((IMAGE, IMAGE.flatten(), 3), r"one shape, got \(2, 3\) and \(6"),
    "broadcast": ((IMAGE, IMAGE[:1], 3), r"one shape, got \(2, 3\) and \(1, 3\)"),
    "no classes": ((IMAGE, IMAGE, 0), "num_classes must be 1 to 32768, got 0"),
    "negative classes": ((IMAGE, IMAGE, -4), "num_classes must be 1 to 32768, got -4"),
    "too many classes": ((IMAGE, IMAGE, 2**40), f"num_classes must be 1 to 32768, got {2**40}"),
}


@pytest.mark.parametrize("fake", [False, True], ids=["eager", "fake"])
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, fake):
    (prediction, target, classes), words = BAD[name]
    if not fake:
        with pytest.raises(RuntimeError, match=words):
            fastseg.confusion_matrix(prediction, target, classes)
        with pytest.raises(RuntimeError, match=words):
            torch.ops.fastseg.confusion_matrix(prediction.mT.mT, target, classes)
        return
    with FakeTensorMode() as mode, pytest.raises(RuntimeError) as caught:
        fastseg.confusion_matrix(*map(mode.from_tensor, (prediction, target)), classes)
    assert re.search(words, str(caught.value))


def test_what_is_no_tensor():
    with pytest.raises(TypeError, match="confusion_matrix: target must be a tensor, got ndarray"):
        fastseg.confusion_matrix(IMAGE, IMAGE.numpy(), 3)
    with pytest.raises(RuntimeError, match="prediction must be a dense tensor"):
        fastseg.confusion_matrix(IMAGE.to_sparse(), IMAGE, 3)
