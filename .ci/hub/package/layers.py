"""Layers without state of their own, whose forward takes the place of one of torch's layers'."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ops import atrous_conv2d, max_pool2d, max_unpool2d

Ints = int | tuple[int, int]

__all__ = ["Conv2d", "MaxPool2d", "MaxUnpool2d"]


class Conv2d(torch.nn.Module):
    """The forward of torch.nn.Conv2d on :func:`atrous_conv2d`."""

    can_torch_compile: bool = True

    weight: Tensor
    bias: Tensor | None
    stride: Ints
    padding: Ints | str
    dilation: Ints
    groups: int
    padding_mode: str

    def forward(self, input: Tensor) -> Tensor:
        """Convolves input, (N, C, H, W) or (C, H, W).

        Raises:
            ValueError: the layer pads with something other than zeros.
        """
        if self.padding_mode != "zeros":
            raise ValueError(f"Conv2d: padding_mode must be 'zeros', got {self.padding_mode!r}")
        return atrous_conv2d(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class MaxPool2d(torch.nn.Module):
    """The forward of torch.nn.MaxPool2d on :func:`max_pool2d`.

    With ``return_indices=True`` the second output is uint8 codes, which :class:`MaxUnpool2d` takes
    and :func:`codes_to_indices` converts.
    """

    can_torch_compile: bool = True

    kernel_size: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil_mode: bool
    return_indices: bool

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Pools input, (N, C, H, W) or (C, H, W)."""
        values, codes = max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return (values, codes) if self.return_indices else values


class MaxUnpool2d(torch.nn.Module):
    """The forward of torch.nn.MaxUnpool2d on :func:`max_unpool2d`."""

    can_torch_compile: bool = True

    kernel_size: Ints
    stride: Ints
    padding: Ints

    def forward(
        self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Unpools input by uint8 codes or int64 indices of the same shape."""
        return max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
