"""The module torch.nn.MaxPool2d with byte codes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.ops import max_pool2d


class MaxPool2d(torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on :func:`fastseg.max_pool2d`; the arguments are torch's.

    With ``return_indices=True`` the second output is uint8 codes, which
    :class:`fastseg.nn.MaxUnpool2d` takes and :func:`fastseg.codes_to_indices` converts.
    """

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Pools an input (N, C, H, W) or (C, H, W)."""
        values, codes = max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return (values, codes) if self.return_indices else values
