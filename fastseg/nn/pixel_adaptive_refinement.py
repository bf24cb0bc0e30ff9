"""Pixel-adaptive refinement as a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.ops import pixel_adaptive_refinement

PUBLISHED_BUFFERS = ("kernel", "aff_x.kernel", "aff_m.kernel", "aff_std.kernel")
"""Keys that the published modules leave in a checkpoint; their tensors are constants."""


class PixelAdaptiveRefinement(torch.nn.Module):
    """The published modules PAR and PAMR on :func:`fastseg.pixel_adaptive_refinement`.

    It takes PAR's arguments in PAR's order, and PAMR's by their names with ``variant="pamr"``. It
    has no parameters. Checkpoints of models that hold a published module load.

    Args:
        dilations: distances of the neighbours in pixels, positive.
        num_iter: number of iterations.
        variant: "par" or "pamr".
    """

    def __init__(self, dilations: Sequence[int], num_iter: int, variant: str = "par"):
        super().__init__()
        if isinstance(dilations, int):
            raise TypeError(
                f"PixelAdaptiveRefinement: dilations must be a sequence of integers, got "
                f"{dilations}; PAMR's num_iter and dilations are passed by their names"
            )
        self.dilations = tuple(dilations)
        self.num_iter = num_iter
        self.variant = variant

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        """Refines masks (N, C, h, w) by an image (N, K, H, W), to which they are resized."""
        return pixel_adaptive_refinement(
            image, masks, self.dilations, self.num_iter, variant=self.variant
        )

    def extra_repr(self) -> str:
        """Names the arguments."""
        return f"dilations={self.dilations}, num_iter={self.num_iter}, variant={self.variant!r}"

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        for name in PUBLISHED_BUFFERS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)
