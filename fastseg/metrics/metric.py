"""What all metrics share: sums over pixels or images, which batches and processes add to."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastseg._core.formulas import is_counted
from fastseg.ops.head.confusion_matrix import IDS

if TYPE_CHECKING:
    from typing_extensions import Self


class Metric(ABC):
    """A score of many label maps, from sums that are kept between batches.

    The sums lie where the last batch lay, so that adding a batch on a GPU moves nothing to the CPU.

    Args:
        num_classes: number of classes C, with ids 0 to C - 1.
        ignore_index: label of pixels that are not counted; None counts all.

    Raises:
        ValueError: num_classes is not positive.
        TypeError: num_classes or ignore_index is no integer.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        self.num_classes = integer("num_classes", num_classes)
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.ignore_index = None if ignore_index is None else integer("ignore_index", ignore_index)
        self.sums: dict[str, Tensor] = self._zeros()

    @abstractmethod
    def _zeros(self) -> dict[str, Tensor]:
        """Returns the sums of no batch, by name."""

    @abstractmethod
    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds the pixels of a batch.

        Args:
            prediction: predicted class ids, an integer tensor.
            label: true class ids, an integer tensor of the same shape.

        Raises:
            ValueError: the shapes differ or do not fit, or an id of a counted pixel is no class.
            TypeError: a tensor that is not of integers.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the scores of all batches by name; nan where nothing was counted."""

    def reset(self) -> None:
        """Forgets all batches."""
        self.sums = self._zeros()

    def to(self, device: torch.device | str) -> Self:
        """Moves the sums to a device and returns the metric."""
        self.sums = {name: total.to(device) for name, total in self.sums.items()}
        return self

    def merge(self, other: Metric) -> Self:
        """Adds the batches of another metric of the same kind and options; returns this one.

        Raises:
            ValueError: the other metric has another class or other options.
        """
        if type(other) is not type(self) or other._options() != self._options():
            raise ValueError(f"{self!r} cannot be merged with {other!r}")
        self._add(other.sums)
        return self

    def all_reduce(self, group: Any = None) -> Self:
        """Adds up the batches of all processes, in every one of them; returns the metric.

        Every process calls it, once, when its batches are done: after it all have the same sums,
        and a second call would count them again.

        Args:
            group: a process group of torch.distributed; None is the default one. Its backend must
                take tensors of the sums' device, see :meth:`to`.
        """
        for total in self.sums.values():
            torch.distributed.all_reduce(total, group=group)
        return self

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"{type(self).__name__}({options})"

    def _options(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "sums"}

    def _add(self, terms: dict[str, Tensor]) -> None:
        self.sums = {name: self.sums[name].to(t.device) + t for name, t in terms.items()}


def integer(name: str, value: Any) -> int:
    """Returns an argument as an integer, also one of NumPy; raises TypeError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def check_maps(prediction: Tensor, label: Tensor) -> None:
    """Raises TypeError unless both are of integers, ValueError unless they have one shape."""
    for name, tensor in (("prediction", prediction), ("label", label)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in IDS:
            raise TypeError(f"{name} must hold integer class ids, got {tensor.dtype}")
    if prediction.shape != label.shape:
        raise ValueError(
            f"prediction and label must have one shape, got {tuple(prediction.shape)} and "
            f"{tuple(label.shape)}"
        )


def check_ids(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None
) -> None:
    """Raises ValueError if an id of a counted pixel is no class."""
    if ignore_index is not None:
        counted = is_counted(label, ignore_index)
        prediction, label = prediction[counted], label[counted]
    if label.numel() == 0:
        return
    for name, ids in (("prediction", prediction), ("label", label)):
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} must hold ids 0 to {num_classes - 1}, got {low} to {high}")


def ratio(part: Tensor, whole: Tensor, absent: float | None = None) -> Tensor:
    """Returns part / whole in float64, `absent` where whole is 0; None stands for nan."""
    quotient = part.double() / whole.double()
    return quotient if absent is None else torch.where(whole == 0, absent, quotient)
