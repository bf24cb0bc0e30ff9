"""Drop-in for ``bilateralfilter``, the SWIG module of rloss, AFA, ToCo, SeCo and others.

Their losses run by changing an import::

    from fastseg.compat.bilateralfilter import bilateralfilter, bilateralfilter_batch

The lattice is the same, and so is the result up to float32 rounding; where the SWIG module writes
beyond its arrays (sizes that do not fit) or computes nonsense (NaN, tiny bandwidths) there is a
clear error. Threads are torch's (``torch.set_num_threads``); other Python threads run meanwhile.
:class:`fastseg.nn.DenseEnergyLoss` is the whole loss, on any device.

Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018; the
interface is that of https://github.com/meng-tang/rloss.
"""

from __future__ import annotations

import math
import operator
from numbers import Real

import numpy as np
import torch

from fastseg.ops.crf.bilateral_filter import bilateral_filter

__all__ = ["bilateralfilter", "bilateralfilter_batch"]

CHANNELS = 3
"""The number of an image's channels."""


def bilateralfilter(
    image: np.ndarray,
    _in: np.ndarray,
    out: np.ndarray,
    H: int,
    W: int,
    sigmargb: float,
    sigmaxy: float,
) -> None:
    """Filters the planes of one image's values.

    ``out_i = sum_j exp(-|p_i - p_j|^2 / (2 sigmaxy^2) - |I_i - I_j|^2 / (2 sigmargb^2)) in_j``,
    not normalised, on Krähenbühl and Koltun's lattice.

    Args:
        image: the image I, flat (3 * H * W), plane after plane; what float32 holds safely.
        _in: the values, flat (K * H * W), K planes; as image.
        out: the result, flat float32 of _in's size, written in place.
        H: the height in pixels.
        W: the width in pixels.
        sigmargb: the standard deviation of colours, positive.
        sigmaxy: the standard deviation of positions in pixels, positive.

    Raises:
        TypeError: an argument of a wrong type, or an array whose values float32 may not hold.
        ValueError: sizes that do not fit each other, a bandwidth that is not positive.
        RuntimeError: an image that is not finite, or too large for the lattice.
    """
    H, W = _count("H", H), _count("W", W)
    values = _flat("_in", _in)
    if H * W == 0 or values.size % (H * W):
        raise ValueError(f"_in must have whole planes of H * W = {H * W} values, got {values.size}")
    _filter(
        ("image", "_in", "out"),
        image,
        values,
        out,
        1,
        values.size // (H * W),
        H,
        W,
        sigmargb,
        sigmaxy,
    )


def bilateralfilter_batch(
    images: np.ndarray,
    ins: np.ndarray,
    outs: np.ndarray,
    N: int,
    K: int,
    H: int,
    W: int,
    sigmargb: float,
    sigmaxy: float,
) -> None:
    """Filters the values of N images, each as `bilateralfilter` does.

    Args:
        images: the images, flat (N * 3 * H * W); what float32 holds safely.
        ins: the values, flat (N * K * H * W); as images.
        outs: the results, flat float32 of ins's size, written in place.
        N: the number of images.
        K: the number of planes of an image's values.
        H: the height in pixels.
        W: the width in pixels.
        sigmargb: the standard deviation of colours, positive.
        sigmaxy: the standard deviation of positions in pixels, positive.

    Raises:
        TypeError: an argument of a wrong type, or an array whose values float32 may not hold.
        ValueError: sizes that do not fit each other, a bandwidth that is not positive.
        RuntimeError: an image that is not finite, or too large for the lattice.
    """
    N, K, H, W = (_count(n, v) for n, v in (("N", N), ("K", K), ("H", H), ("W", W)))
    names = ("images", "ins", "outs")
    _filter(names, images, _flat("ins", ins), outs, N, K, H, W, sigmargb, sigmaxy)


def _filter(
    names: tuple[str, str, str],
    images: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
    n: int,
    k: int,
    h: int,
    w: int,
    sigmargb: float,
    sigmaxy: float,
) -> None:
    """Filters what is checked here, errors naming the arguments as the caller does."""
    colours = _flat(names[0], images)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32:
        raise TypeError(
            f"{names[2]} must be a float32 array, got {getattr(out, 'dtype', type(out).__name__)}"
        )
    if out.ndim != 1 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"{names[2]} must be flat, contiguous and writable, got shape {out.shape}"
            + ("" if out.flags.c_contiguous else ", not contiguous")
            + ("" if out.flags.writeable else ", read-only")
        )
    sizes = {names[0]: (colours, n * CHANNELS), names[1]: (values, n * k), names[2]: (out, n * k)}
    for name, (array, planes) in sizes.items():
        if array.size != planes * h * w:
            raise ValueError(
                f"{name} must have {planes} planes of {h} x {w}, {planes * h * w} values, got "
                f"{array.size}"
            )
    sigmas = {"sigmargb": sigmargb, "sigmaxy": sigmaxy}
    for name, sigma in sigmas.items():
        if not isinstance(sigma, Real):
            raise TypeError(f"{name} must be a number, got {sigma!r}")
        if not (math.isfinite(sigma) and np.float32(sigma) > 0):
            raise ValueError(f"{name} must be positive and finite, got {sigma!r}")
    if values.size == 0:
        return
    filtered = bilateral_filter(
        torch.from_numpy(values).view(n, k, h, w),
        torch.from_numpy(colours).view(n, CHANNELS, h, w),
        float(sigmaxy),
        float(sigmargb),
    )
    out[...] = filtered.view(-1).numpy()


def _flat(name: str, array: object) -> np.ndarray:
    """The array as float32, flat and contiguous; as by SWIG only what float32 holds safely."""
    if isinstance(array, torch.Tensor):
        raise TypeError(f"{name} must be a numpy array, got a tensor; give {name}.numpy()")
    array = np.asarray(array)
    if not np.can_cast(array.dtype, np.float32, "safe"):
        raise TypeError(
            f"{name} must be float32, or of a dtype that it holds safely, got {array.dtype}; give "
            f"{name}.astype(np.float32)"
        )
    if array.ndim != 1:
        raise ValueError(f"{name} must be flat, got shape {array.shape}; give {name}.ravel()")
    array = np.ascontiguousarray(array, np.float32)
    return array if array.flags.writeable else array.copy()  # torch warns of read-only memory


def _count(name: str, value: object) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if count < 0:
        raise ValueError(f"{name} must not be negative, got {count}")
    return count
