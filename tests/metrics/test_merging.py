"""Metrics over batches, objects and processes: all ways to add up give the same."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastseg.metrics import BoundaryF1, BoundaryIoU, ConfusionMatrix, TrimapCurve
from tests.process_groups import destroy_process_group

VOID = 9
KINDS = (ConfusionMatrix, BoundaryF1, BoundaryIoU, TrimapCurve)
each_kind = pytest.mark.parametrize("kind", KINDS)


def batches(count=4):
    """Small predictions and truths with void."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        label = torch.randint(3, (2, 3, 4), generator=generator)
        label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
        prediction = label.roll(1, 2)
        yield prediction, label.where(torch.rand(label.shape, generator=generator) > 0.05, VOID)


def filled(kind, of=lambda i: True):
    metric = kind(3, VOID)
    for i, batch in enumerate(batches()):
        if of(i):
            metric.update(*batch)
    return metric


def assert_same(metric, expected):
    """Counts exactly, and sums of scores but for the order of their terms."""
    assert metric.sums.keys() == expected.sums.keys()
    for name, total in metric.sums.items():
        torch.testing.assert_close(total, expected.sums[name], rtol=1e-12, atol=0)
    assert metric.compute() == pytest.approx(expected.compute(), rel=1e-12)


@each_kind
def test_merged_halves_are_the_whole(kind):
    even, odd = filled(kind, lambda i: i % 2 == 0), filled(kind, lambda i: i % 2)
    before = copy.deepcopy(odd.sums)
    assert even.merge(odd) is even
    assert_same(even, filled(kind))
    for name, total in odd.sums.items():
        assert torch.equal(total, before[name])


@each_kind
def test_reset(kind):
    metric = filled(kind)
    metric.reset()
    assert_same(metric.merge(filled(kind)), filled(kind))


@each_kind
def test_a_batch_is_the_sum_of_its_images(kind):
    single, whole = kind(3, VOID), filled(kind)
    for prediction, label in batches():
        for p, t in zip(prediction, label, strict=True):
            single.update(p, t)
    assert_same(single, whole)


@each_kind
def test_copies_and_pickles(kind):
    metric = filled(kind)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.to("cpu")):
        assert_same(twin, metric)


def test_metrics_of_other_options_are_not_merged():
    metric = ConfusionMatrix(3, VOID)
    others = ConfusionMatrix(3), ConfusionMatrix(4, VOID), BoundaryIoU(3, VOID)
    for other in others:
        words = r"ConfusionMatrix\(num_classes=3, ignore_index=9\) cannot be merged with"
        with pytest.raises(ValueError, match=words):
            metric.merge(other)
    with pytest.raises(ValueError, match="cannot be merged"):
        BoundaryF1(3, tolerance=1, unit="pixels").merge(BoundaryF1(3, tolerance=1))


def _in_process(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for kind in KINDS:
        metric = filled(kind, lambda i: i % 2 == rank)
        assert metric.all_reduce() is metric
        assert_same(metric, filled(kind))
        alone = kind(3, VOID) if rank else filled(kind)  # a process without a batch
        assert_same(alone.all_reduce(), filled(kind))
    destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
def test_two_processes(tmp_path):
    mp.spawn(_in_process, (str(tmp_path / "rendezvous"),), nprocs=2)
