"""The module torch.nn.MaxUnpool2d for byte codes and int64 indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.ops import max_unpool2d


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """torch.nn.MaxUnpool2d on :func:`fastseg.max_unpool2d`; the arguments are torch's."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Unpools an input by uint8 codes or int64 indices of the same shape."""
        return max_unpool2d(
            input, indices, self.kernel_size, self.stride, self.padding, output_size
        )
