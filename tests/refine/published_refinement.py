"""PAMR and PAR as their papers' projects compute them, with a copy of the masks a neighbour.

Neighbours are convolutions with one-hot kernels on padded planes, all of them side by side in
memory; the tests and the benchmark compare with these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbors(x: Tensor, dilations: Sequence[int], taps: Sequence[int]) -> Tensor:
    """Returns (N, C, len(dilations) * len(taps), H, W): the windows' taps, in raster order."""
    kernel = torch.eye(9, dtype=x.dtype)[list(taps)].view(-1, 1, 3, 3)
    planes = x.flatten(0, 1)[:, None]
    windows = [
        F.conv2d(F.pad(planes, (d, d, d, d), mode="replicate"), kernel, dilation=d)
        for d in dilations
    ]
    return torch.cat(windows, 1).view(*x.shape[:2], -1, *x.shape[2:])


AROUND = (0, 1, 2, 3, 5, 6, 7, 8)


def pamr(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Returns PAMR's affinities (N, 1, neighbours, H, W)."""
    deviation = neighbors(image, dilations, range(9)).std(2, keepdim=True)
    difference = neighbors(image, dilations, AROUND) - image[:, :, None]
    logits = -difference.abs() / (1e-8 + 0.1 * deviation)
    return logits.mean(1, keepdim=True).softmax(2)


def par(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """Returns PAR's affinities (N, 1, neighbours, H, W)."""
    around = neighbors(image, dilations, AROUND)
    difference, deviation = (around - image[:, :, None]).abs(), around.std(2, keepdim=True)
    logits = -((difference / (deviation + 1e-8) / 0.3) ** 2)
    diagonal = math.sqrt(2)
    ring = torch.tensor([diagonal, 1, diagonal, 1, 1, diagonal, 1, diagonal], dtype=image.dtype)
    distance = torch.cat([d * ring for d in dilations]).view(1, 1, -1, 1, 1)
    position = -((distance / (distance.std(2, keepdim=True) + 1e-8) / 0.3) ** 2)
    return logits.mean(1, keepdim=True).softmax(2) + 0.01 * position.softmax(2)


AFFINITIES = {"pamr": pamr, "par": par}


def refine(
    image: Tensor, masks: Tensor, dilations: Sequence[int], iterations: int, variant: str
) -> Tensor:
    """Returns the refined masks."""
    masks = F.interpolate(masks, image.shape[2:], mode="bilinear", align_corners=True)
    affinity = AFFINITIES[variant](image, dilations)
    for _ in range(iterations):
        masks = (neighbors(masks, dilations, AROUND) * affinity).sum(2)
    return masks
