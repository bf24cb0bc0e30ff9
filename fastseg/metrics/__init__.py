"""Metrics that score segmentations, over batches and processes.

Every metric has ``update(prediction, label)`` for a batch, ``compute()`` for the scores so far by
name, ``reset()``, ``merge(other)`` and, with torch.distributed, ``all_reduce()``. For torchmetrics'
``MetricCollection`` wrap one in ``fastseg.metrics.torchmetrics.TorchMetric``.
"""

from fastseg.metrics.boundary_f1 import BoundaryF1
from fastseg.metrics.boundary_iou import BoundaryIoU
from fastseg.metrics.confusion_matrix import ConfusionMatrix
from fastseg.metrics.metric import Metric
from fastseg.metrics.trimap_curve import TrimapCurve

__all__ = ["BoundaryF1", "BoundaryIoU", "ConfusionMatrix", "Metric", "TrimapCurve"]
