"""The scores of pictures by a network at several scales, flipped, in tiles and with a CRF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg.data.channel_image import Picture
from fastseg.segment.segmenter import Segmenter, highest_class, refine
from fastseg.segment.tiles import tiled, tiled_rows

DEFAULT_TILE = 1024
"""Side of a tile, pixels of the network's input; smaller pictures are computed as a whole."""

SCALES = (0.1, 4.0)
"""Least and greatest scale."""


@dataclass(frozen=True)
class Predictor:
    """A segmenter and how it is applied.

    Args:
        segmenter: the network, on its device.
        device: that device.
        scales: scales of the network's input, whose probabilities are averaged.
        flip: whether the averages are also over pictures flipped from left to right.
        crf: whether a dense CRF refines the result.
        tile: side of the tiles that larger inputs are cut into, pixels.

    Raises:
        ValueError: a scale or a tile out of range.
    """

    segmenter: Segmenter
    device: torch.device
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    crf: bool = False
    tile: int = DEFAULT_TILE

    def __post_init__(self) -> None:
        """Checks scales and tile."""
        low, high = SCALES
        if not self.scales or not all(low <= scale <= high for scale in self.scales):
            raise ValueError(f"--scales: must be {low:g} to {high:g}, got {list(self.scales)}")
        if self.tile < 32:
            raise ValueError(f"--tile {self.tile}: at least 32 pixels")

    @property
    def is_plain(self) -> bool:
        """Whether a picture's scores are the network's logits at one scale."""
        return tuple(self.scales) == (1.0,) and not self.flip

    @torch.inference_mode()
    def scores(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Returns the scores of pictures whose inputs have one size, each (1, C, h, w).

        They are logits, or the logarithms of averaged probabilities, at the network's resolution;
        after a CRF, logarithms of probabilities at the picture's.
        """
        inputs = [self.segmenter.prepare(picture) for picture in pictures]
        x = torch.cat(inputs).to(self.device, memory_format=torch.channels_last)
        scores = self._network(x) if self.is_plain else self._averaged(x)
        if not self.crf:
            return list(scores.split(1))
        refined = [refine(s, p) for s, p in zip(scores.split(1), pictures, strict=True)]
        return [q.clamp_min(1e-12).log() for q in refined]

    @torch.inference_mode()
    def labels(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        """Returns the classes of pictures whose inputs have one size, uint8 (H, W) each.

        Of a picture that the network takes at its own size, in tiles, the classes of a band of rows
        are found at a time: logits of the whole picture are never stored.
        """
        size = self.segmenter.input_size(pictures[0])
        own = all(size == (picture.height, picture.width) for picture in pictures)
        if own and self.is_plain and not self.crf and max(size) > self.tile:
            return [self._in_bands(picture) for picture in pictures]
        found = zip(self.scores(pictures), pictures, strict=True)
        return [highest_class(scores, (p.height, p.width)) for scores, p in found]

    def _in_bands(self, picture: Picture) -> np.ndarray:
        x = self.segmenter.prepare(picture).to(self.device, memory_format=torch.channels_last)
        bands = tiled_rows(self.segmenter, x, self.tile)
        return np.concatenate([highest_class(rows, tuple(rows.shape[-2:])) for _, rows in bands])

    def _network(self, x: Tensor) -> Tensor:
        if max(x.shape[-2:]) <= self.tile:
            return self.segmenter(x)
        return torch.cat([tiled(self.segmenter, picture, self.tile) for picture in x.split(1)])

    def _averaged(self, x: Tensor) -> Tensor:
        size, total = x.shape[-2:], None
        for scale in self.scales:
            scaled = tuple(max(1, round(side * scale)) for side in size)
            resized = x if scale == 1 else F.interpolate(x, scaled, mode="bilinear", antialias=True)
            for flipped in (False, True)[: 1 + self.flip]:
                logits = self._network(resized.flip(-1) if flipped else resized)
                q = F.interpolate(logits.float(), size, mode="bilinear").softmax(1)
                q = q.flip(-1) if flipped else q
                total = q if total is None else total + q
        return (total / (len(self.scales) * (1 + self.flip))).clamp_min(1e-12).log()
