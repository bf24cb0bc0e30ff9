"""What losses of class maps have in common: arguments checked, activation, one-hot targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastseg._core.tensor_checks import FLOATS, check_tensors
from fastseg.ops.head.distance_transform import MASKS

REDUCTIONS = ("mean", "sum", "none")


class ClassMapLoss(nn.Module):
    """A loss of (N, C, H, W) or (N, C, D, H, W) with MONAI's options, which its classes document.

    Args:
        include_background: whether channel 0 counts.
        to_onehot_y: whether the target holds labels.
        sigmoid: whether the input's sigmoid is taken.
        softmax: whether the input's softmax over the channels is taken.
        other_act: another activation, or None.
        reduction: "mean", "sum" or "none".
    """

    def __init__(
        self,
        include_background: bool,
        to_onehot_y: bool,
        sigmoid: bool,
        softmax: bool,
        other_act: Callable[[Tensor], Tensor] | None,
        reduction: str,
    ):
        super().__init__()
        self.op = f"fastseg.nn.{type(self).__name__}"
        if other_act is not None and not callable(other_act):
            raise TypeError(
                f"{self.op}: other_act must be callable or None, got {type(other_act).__name__}"
            )
        if sum((bool(sigmoid), bool(softmax), other_act is not None)) > 1:
            raise ValueError(
                f"{self.op}: only one of sigmoid, softmax and other_act may be given, got "
                f"sigmoid={sigmoid}, softmax={softmax}, other_act={other_act}"
            )
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"{self.op}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
            )
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.reduction = reduction

    def class_maps(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the probabilities and the one-hot target of the classes that count.

        The target has the probabilities' dtype.
        """
        check_tensors(self.op, input=input, target=target)
        if (
            input.dtype not in FLOATS
        ):  # torch._check takes no tensor's text from a compiled function
            raise ValueError(
                f"{self.op}: input must be float32, float64, float16 or bfloat16, got {input.dtype}"
            )
        if input.dim() not in (4, 5):
            raise ValueError(
                f"{self.op}: input must be (N, C, H, W) or (N, C, D, H, W), got shape "
                f"{tuple(input.shape)}"
            )
        if target.dtype not in MASKS:
            raise ValueError(
                f"{self.op}: target must be bool, of integers, or float32, float64, float16 or "
                f"bfloat16, got {target.dtype}"
            )
        if target.device != input.device:
            raise ValueError(
                f"{self.op}: input and target must be on one device, got {input.device} and "
                f"{target.device}"
            )
        classes = input.shape[1]
        probabilities = self._activated(input, classes)
        target = self._one_hot(target, input).to(probabilities.dtype)
        if target.shape != probabilities.shape:
            raise ValueError(
                f"{self.op}: target must have input's shape {tuple(probabilities.shape)}, got "
                f"{tuple(target.shape)}"
            )
        if self.include_background:
            return probabilities, target
        if classes == 1:
            self._ignored("include_background=False")
            return probabilities, target
        return probabilities[:, 1:], target[:, 1:]

    def _activated(self, input: Tensor, classes: int) -> Tensor:
        if self.sigmoid:
            return input.sigmoid()
        if self.other_act is not None:
            return self.other_act(input)
        if self.softmax and classes == 1:
            self._ignored("softmax=True")
        elif self.softmax:
            return input.softmax(1)
        return input

    def _one_hot(self, target: Tensor, input: Tensor) -> Tensor:
        classes = input.shape[1]
        if not self.to_onehot_y:
            return target
        if classes == 1:
            self._ignored("to_onehot_y=True")
            return target
        labels = (input.shape[0], 1, *input.shape[2:])
        if target.shape != labels:
            raise ValueError(
                f"{self.op}: target must hold labels of shape {labels}, got {tuple(target.shape)}"
            )
        of_channels = torch.arange(classes, device=target.device)
        return target == of_channels.view(-1, *[1] * (input.dim() - 2))

    def _ignored(self, option: str) -> None:
        warnings.warn(f"{self.op}: {option} is ignored for an input of one channel", stacklevel=4)

    def reduced(self, values: Tensor) -> Tensor:
        """Returns the values' mean or sum, or themselves."""
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()
