"""torch's own gradients of a convolution, for those that the kernels here gain nothing in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.conv2d import empty_output, empty_weight, in_layout_of

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Stride, padding and dilation, each (vertical, horizontal)."""


def torch_input_grad(
    grad: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, groups: int
) -> Tensor:
    """The gradient of x (N, Ci, H, W) for grad (N, Co, h, w), in grad's layout.

    `input_size` is (H, W), weight is (Co, Ci / groups, kh, kw).
    """
    x = empty_output(grad, weight.shape[1] * groups, input_size)  # its values are not read
    return in_layout_of(grad, _backward(grad, x, weight, geometry, groups, 0))


def torch_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Sequence[int], geometry: Geometry, groups: int
) -> Tensor:
    """The gradient of the weight (Co, Ci / groups, kh, kw) for grad (N, Co, h, w), in x's layout.

    x is (N, Ci, H, W), `kernel_size` (kh, kw).
    """
    weight = empty_weight(x, grad, kernel_size, groups)  # its values are not read
    return in_layout_of(x, _backward(grad, x, weight, geometry, groups, 1))


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, which: int
) -> Tensor:
    """The gradient of x, which = 0, or of the weight, which = 1."""
    wanted = (which == 0, which == 1, False)
    backward = torch.ops.aten.convolution_backward
    return backward(grad, x, weight, None, *geometry, False, (0, 0), groups, wanted)[which]
