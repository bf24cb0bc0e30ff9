"""Networks on pictures of any size: overlapping tiles, whose scores are blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

OVERLAP = 0.25
"""Share of a tile that the next one repeats."""


def starts(length: int, tile: int) -> list[int]:
    """Returns where tiles begin along a side, so that they cover it with even overlaps.

    Args:
        length: pixels of the side.
        tile: pixels of a tile.
    """
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1 - OVERLAP)))
    count = -(-(length - tile) // step) + 1
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def window(size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the weight of each pixel of a tile, (H, W): 1 inside, less towards its border."""
    sides = []
    for length in size:
        ramp = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        sides.append(torch.minimum(ramp, ramp.flip(0)).clamp(max=max(1, length * OVERLAP)))
    return sides[0][:, None] * sides[1][None, :]


def tiled_rows(
    network: Callable[[Tensor], Tensor], x: Tensor, tile: int
) -> Iterator[tuple[int, Tensor]]:
    """Yields the logits of a picture in bands of rows, computed tile by tile.

    No more than a band is held at once. A picture that fits into a tile is computed as a whole.

    Args:
        network: turns (N, channels, h, w) into logits (N, C, h, w).
        x: (1, channels, H, W).
        tile: side of a tile, pixels.

    Yields:
        The first row of a band, and its logits (1, C, rows, W).
    """
    height, width = x.shape[-2:]
    tops, lefts = starts(height, tile), starts(width, tile)
    rows, columns = min(tile, height), min(tile, width)
    weights = window((rows, columns), x.device)
    logits = total = None
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            part = network(x[..., top : top + rows, left : left + columns]).float()
            if logits is None:
                logits = x.new_zeros((1, part.shape[1], rows, width))
                total = x.new_zeros((rows, width))
            logits[..., left : left + columns] += part * weights
            total[:, left : left + columns] += weights
        done = following - top
        yield top, logits[:, :, :done] / total[:done]
        logits = F.pad(logits[:, :, done:], (0, 0, 0, done))
        total = F.pad(total[done:], (0, 0, 0, done))


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, tile: int) -> Tensor:
    """Returns all logits of :func:`tiled_rows`, (1, C, H, W)."""
    return torch.cat([logits for _, logits in tiled_rows(network, x, tile)], 2)
