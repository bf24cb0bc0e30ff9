"""The image of a dense CRF: what is taken for one, as a tensor in the form of the unary."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg._core.pairwise import Pairwise, PairwiseBilateral
from fastseg._core.readable import readable

PIL_MODES = ("L", "RGB")
"""Modes of PIL whose bytes are colours: a palette's are not, and alpha is no colour."""


def image_tensor(name: str, image: Any, unary: Tensor, resized: bool) -> Tensor:
    """The image as a tensor of unary's dimensions, on its device; a tensor is returned as it is.

    Args:
        name: the public function, with which errors begin.
        image: a tensor, a uint8 array (H, W, C), (H, W) or, for a batch, (B, H, W, C), or a picture
            of PIL.
        unary: (L, H, W), (B, L, H, W) or (B, L, D, H, W).
        resized: whether the unary may be smaller than the image.

    Raises:
        TypeError: an image that is none of these.
        ValueError: an array of another dtype or shape, or one that may be (C, H, W) as well; a
            picture of a mode whose bytes are no colours.
    """
    if isinstance(image, Tensor):
        return image
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(image, pil.Image):
        if image.mode not in PIL_MODES:
            raise ValueError(
                f"{name}: image must be a picture of mode {' or '.join(PIL_MODES)}, got "
                f"{image.mode}; give image.convert('RGB')"
            )
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = data.view(image.height, image.width, -1)
    elif (numpy := sys.modules.get("numpy")) is not None and isinstance(image, numpy.ndarray):
        array = _checked_array(name, image, unary, resized)
        pixels = torch.from_numpy(array.copy())  # torch takes no negative strides
    else:
        raise TypeError(
            f"{name}: image must be a tensor, a uint8 array (H, W, C), a picture of PIL or None, "
            f"got {type(image).__name__}"
        )
    planes = pixels.movedim(-1, -3).contiguous()
    batched = unary.dim() > 3
    return (planes[None] if batched and planes.dim() == 3 else planes).to(unary.device)


def _checked_array(name: str, image: Any, unary: Tensor, resized: bool) -> Any:
    """The array with colours on its last axis."""
    if image.dtype != "uint8":
        raise ValueError(
            f"{name}: image must be uint8 as an array, got {image.dtype}; give a tensor "
            "(C, H, W) of any dtype"
        )
    h, w = unary.shape[-2:]
    if unary.dim() == 5 or image.ndim not in ((2, 3) if unary.dim() == 3 else (2, 3, 4)):
        raise ValueError(
            f"{name}: image must be (H, W, C) as an array, got shape {image.shape} for a unary of "
            f"shape {tuple(unary.shape)}"
        )
    if image.ndim == 2:
        return image[..., None]

    def fits(height: int, width: int) -> bool:
        return (height >= h and width >= w) if resized else (height, width) == (h, w)

    if not fits(*image.shape[-2:]):
        return image  # whether it fits as (H, W, C) is checked with the tensors
    may = "may be (C, H, W), too" if fits(*image.shape[-3:-1]) else "seems to be (C, H, W)"
    raise ValueError(
        f"{name}: image must be (H, W, C) as an array, got shape {image.shape}, which {may}, for a "
        f"unary of shape {tuple(unary.shape)}; give a tensor (C, H, W)"
    )


def warn_of_units(name: str, image: Tensor, pairwise: Sequence[Pairwise]) -> None:
    """Warns of an image of values 0 to 1 beside an srgb for 0 to 255: no colour would matter."""
    srgb = [
        number
        for term in pairwise
        if isinstance(term, PairwiseBilateral) and not isinstance(term.srgb, Tensor)
        for number in (term.srgb if isinstance(term.srgb, tuple) else (term.srgb,))
    ]
    if not image.is_floating_point() or not srgb or min(srgb) < 1:
        return
    values = readable(image)
    if values is None or values.numel() == 0:
        return
    low, high = (v.item() for v in values.aminmax())
    if 0 <= low < high <= 1:
        warnings.warn(
            f"{name}: image holds values from {low:.3g} to {high:.3g}, beside which srgb = "
            f"{min(srgb):g} makes all colours alike; give 255 * image, or a smaller srgb",
            stacklevel=4,
        )
