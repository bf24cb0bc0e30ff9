"""A module for batch norm, ReLU and max-pooling, fused in inference."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.window import Ints
from fastseg.nn._batch_norm import can_fold
from fastseg.ops import batch_norm_relu_max_pool2d, fold_batch_norm, max_pool2d


class BatchNormReLUMaxPool2d(torch.nn.BatchNorm2d):
    """BatchNorm2d, ReLU and MaxPool2d(return_indices=True); the state_dict is BatchNorm2d's.

    In training, and where running statistics have been taken away, the three run one after the
    other, since the batch's statistics need a pass of their own; in evaluation they are one pass,
    :func:`fastseg.batch_norm_relu_max_pool2d`.

    Args:
        num_features: number of channels.
        kernel_size: the pooling's window, one integer or (height, width).
        stride: the pooling's stride, one integer or (height, width); None is the kernel's size.
        padding: the pooling's padding, one integer or (height, width).
        eps: number added to the variance.
        momentum: weight of a new batch in the running statistics; None for their plain average.
    """

    def __init__(
        self,
        num_features: int,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ):
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns values and uint8 codes for x, (N, C, H, W)."""
        if not can_fold(self):
            y = super().forward(x).relu()
            return max_pool2d(y, self.kernel_size, self.stride, self.padding)
        scale, shift = fold_batch_norm(
            self.weight, self.bias, self.running_mean, self.running_var, self.eps
        )
        return batch_norm_relu_max_pool2d(
            x, scale, shift, self.kernel_size, self.stride, self.padding
        )

    def extra_repr(self) -> str:
        """Returns the arguments of both parts."""
        return (
            f"{super().extra_repr()}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}"
        )
