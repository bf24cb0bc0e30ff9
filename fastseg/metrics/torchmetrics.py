"""fastseg's metrics as torchmetrics' ones; this module alone needs torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
import torchmetrics
from torch import Tensor

from fastseg.metrics.metric import Metric


class TorchMetric(torchmetrics.Metric):
    """A metric of fastseg for torchmetrics' MetricCollection, loggers and distributed training.

    The sums are states, which torchmetrics adds up over processes, moves and resets.

    Args:
        metric: a metric of fastseg without batches. It belongs to this object from now on.
        options: options of torchmetrics.Metric.

    Raises:
        TypeError: the metric is none of fastseg's.
        ValueError: the metric has batches, which torchmetrics would not count.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, metric: Metric, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(metric, Metric):
            raise TypeError(f"metric must be one of fastseg.metrics, got {type(metric).__name__}")
        if any(total.any() for total in metric.sums.values()):
            raise ValueError(f"metric must be without batches, reset() {metric!r} first")
        self.metric = metric
        for name, total in metric.sums.items():
            self.add_state(name, torch.zeros_like(total), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds a batch of predicted and true class ids."""
        self._lend_states()
        self.metric.update(prediction, label)
        for name, total in self.metric.sums.items():
            setattr(self, name, total)

    def compute(self) -> dict[str, Tensor]:
        """Returns the metric's scores, each as a float64 tensor without dimensions."""
        self._lend_states()
        scores = self.metric.compute().items()
        return {name: torch.tensor(score, dtype=torch.float64) for name, score in scores}

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self._lend_states()

    def _lend_states(self) -> None:
        self.metric.sums = {name: getattr(self, name) for name in self._defaults}
