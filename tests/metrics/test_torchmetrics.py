"""fastseg's metrics in torchmetrics' collections, on one process and two."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastseg.metrics import ConfusionMatrix
from tests.metrics.test_merging import KINDS, VOID, batches, filled
from tests.process_groups import destroy_process_group

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


def collection():
    from fastseg.metrics.torchmetrics import TorchMetric  # it needs torchmetrics

    return torchmetrics.MetricCollection([TorchMetric(ConfusionMatrix(3, VOID)), *extra()])


def extra():
    """One of torchmetrics' own beside ours."""
    return [torchmetrics.classification.MulticlassAccuracy(3, average="micro", ignore_index=VOID)]


def wrapped(kind):
    from fastseg.metrics.torchmetrics import TorchMetric

    return TorchMetric(kind(3, VOID))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_reset(kind):
    metric, expected = wrapped(kind), filled(kind).compute()
    for _ in range(2):
        for batch in batches():
            metric.update(*batch)
        scores = metric.compute()
        assert {name: score.item() for name, score in scores.items()} == expected
        metric.reset()
        assert not any(total.any() for total in metric.metric.sums.values())
    assert pickle.loads(pickle.dumps(metric)).compute().keys() == scores.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_forward_scores_the_batch_and_keeps_the_sum(kind):
    metric = wrapped(kind)
    for batch in batches():
        single = kind(3, VOID)
        single.update(*batch)
        scores = {name: score.item() for name, score in metric(*batch).items()}
        assert scores == pytest.approx(single.compute(), nan_ok=True)
    total = {name: score.item() for name, score in metric.compute().items()}
    assert total == pytest.approx(filled(kind).compute())


def test_metrics_that_cannot_be_wrapped():
    from fastseg.metrics.torchmetrics import TorchMetric

    with pytest.raises(ValueError, match=r"without batches, reset\(\) ConfusionMatrix\(num_cl"):
        TorchMetric(filled(ConfusionMatrix))
    with pytest.raises(TypeError, match=r"one of fastseg\.metrics, got Multiclass"):
        TorchMetric(extra()[0])


def test_a_collection():
    metrics = collection()
    for batch in batches():
        metrics.update(*batch)
    scores = metrics.compute()
    expected = filled(ConfusionMatrix).compute()
    for name, value in expected.items():
        assert scores[name].item() == pytest.approx(value)
    assert scores["MulticlassAccuracy"].item() == pytest.approx(expected["pixel_accuracy"])
    twin = metrics.clone(prefix="val_")
    twin.reset()
    assert torch.isnan(twin.compute()["val_mean_iou"])
    assert metrics.compute()["mean_iou"] == scores["mean_iou"]


def _in_process(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for kind in KINDS:
        metric = wrapped(kind)
        for i, batch in enumerate(batches()):
            if i % 2 == rank:
                metric.update(*batch)
        scores = {name: score.item() for name, score in metric.compute().items()}
        assert scores == pytest.approx(filled(kind).compute(), rel=1e-12)
    destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
def test_two_processes(tmp_path):
    mp.spawn(_in_process, (str(tmp_path / "rendezvous"),), nprocs=2)
