"""The dense CRF as a loss for weakly supervised segmentation."""

from __future__ import annotations

import math
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg._core.lattice_quality import QUALITIES
from fastseg.ops.crf.dense_energy import dense_energy

UNLABELED = 255
"""The label of pixels that no annotation or pseudo-label is given for."""


class DenseEnergyLoss(nn.Module):
    """The energy of a dense CRF's bilateral term as a loss that needs no labels.

    ``-weight/N sum_n sum_k <s, gate * W s>`` over soft segmentations s: neighbours of like colour
    that have unlike probabilities cost the most. Tang et al., "On Regularized Losses for
    Weakly-supervised CNN Segmentation", ECCV 2018. The published DenseCRFLoss (rloss) and, with
    `seg_label`, DenseEnergyLoss (AFA, ToCo, SeCo): the same arguments, value and gradient, to
    rounding, on CPU and GPU, without the SWIG module::

        loss_layer = fastseg.nn.DenseEnergyLoss(
            weight=1e-7, sigma_rgb=15, sigma_xy=100, scale_factor=0.5
        )
        loss = loss_layer(images, logits.softmax(1), croppings, pseudo_labels)

    As published, everything is first scaled: images, ROIs and labels by the nearest pixel,
    segmentations bilinearly, sigma_xy by the factor. With labels, a pixel's part of the value and
    of the gradient is multiplied by a gate: 1 where it is unlabeled (255), else what is missing to
    certainty, ``max(ROI - max_k s, 0)``. The gradient is ``-2 weight/N ROI gate W s``: the gate is
    a constant, and what it does to other pixels' sums is left out.

    The filter's weights are not normalised: the value grows with the area, and `weight` is small.
    One filtering of the lattice gives value and gradient.

    Args:
        weight: the factor of the loss.
        sigma_rgb: the standard deviation of colours, in the images' units (0..255 when published).
        sigma_xy: the standard deviation of positions, in pixels before scaling.
        scale_factor: the factor of heights and widths, in (0, 1] as a rule; 0.5 when published.
        quality: "compat": the published lattice. "high": one with smaller errors, whose filter is
            symmetric, so that without labels the gradient is the value's derivative. "exact": all
            pairs of pixels; for small images.

    Raises:
        TypeError: an argument that is no number.
        ValueError: a bandwidth or factor that is not positive and finite; an unknown quality.
    """

    def __init__(
        self,
        weight: float,
        sigma_rgb: float,
        sigma_xy: float,
        scale_factor: float,
        *,
        quality: str = "compat",
    ):
        super().__init__()
        numbers = {
            "weight": weight,
            "sigma_rgb": sigma_rgb,
            "sigma_xy": sigma_xy,
            "scale_factor": scale_factor,
        }
        for name, number in numbers.items():
            if not isinstance(number, Real) or isinstance(number, bool):
                raise TypeError(f"DenseEnergyLoss: {name} must be a number, got {number!r}")
            if not math.isfinite(number) or (name != "weight" and number <= 0):
                kind = "finite" if name == "weight" else "positive and finite"
                raise ValueError(f"DenseEnergyLoss: {name} must be {kind}, got {number!r}")
        if quality not in QUALITIES:
            raise ValueError(
                f"DenseEnergyLoss: quality must be one of {', '.join(QUALITIES)}, got {quality!r}"
            )
        self.weight, self.sigma_rgb, self.sigma_xy = weight, sigma_rgb, sigma_xy
        self.scale_factor, self.quality = scale_factor, quality

    def forward(
        self,
        images: Tensor,
        segmentations: Tensor,
        ROIs: Tensor | None = None,
        seg_label: Tensor | None = None,
    ) -> Tensor:
        """The loss, a float32 or float64 scalar; differentiable in the segmentations alone.

        Args:
            images: (N, C, H, W), C from 1 to 6, in the units of sigma_rgb; any integer or
                floating-point dtype, on any device.
            segmentations: probabilities (N, K, H, W); float32, float64, or float16 or bfloat16,
                which are computed in float32.
            ROIs: the weights of pixels, (N, H, W), 1 where there is an image and 0 in padding; any
                dtype and device. Default: ones.
            seg_label: labels (N, H, W) or (N, 1, H, W), of which 255 alone matters. Default: no
                gates.

        Raises:
            TypeError: arguments that are not tensors.
            ValueError: shapes or dtypes that do not fit; nothing is left after scaling.
            RuntimeError: images that are not finite, or too large for the lattice.
        """
        _check(images, segmentations, ROIs, seg_label)
        dtype = torch.float64 if segmentations.dtype == torch.float64 else torch.float32
        device = segmentations.device
        if min(math.floor(n * self.scale_factor) for n in segmentations.shape[2:]) < 1:
            raise ValueError(
                f"DenseEnergyLoss: segmentations must keep a pixel after scaling by "
                f"{self.scale_factor}, got shape {tuple(segmentations.shape)}"
            )
        with torch.no_grad():
            images = self._nearest(images.to(device, dtype))
            rois = None if ROIs is None else self._nearest(ROIs.to(device, dtype)[:, None])[:, 0]
        s = F.interpolate(
            segmentations.to(dtype),
            scale_factor=self.scale_factor,
            mode="bilinear",
            align_corners=False,
        )
        gates = None if seg_label is None else self._gates(s.detach(), rois, seg_label)
        sigma_xy = self.sigma_xy * self.scale_factor
        energy = dense_energy(
            s, images, sigma_xy, self.sigma_rgb, rois=rois, gates=gates, quality=self.quality
        )
        return self.weight * energy

    def _nearest(self, t: Tensor) -> Tensor:
        return F.interpolate(t, scale_factor=self.scale_factor)

    def _gates(self, s: Tensor, rois: Tensor | None, labels: Tensor) -> Tensor:
        """What is missing to certainty, (N, H, W) of the scaled size; 1 for unlabeled pixels."""
        labels = labels if labels.dim() == 4 else labels[:, None]
        unlabeled = self._nearest((labels == UNLABELED).to(s.device, s.dtype))[:, 0]
        missing = (1 if rois is None else rois) - s.amax(1)
        return torch.where(unlabeled > 0, 1, missing.clamp_min(0))

    def extra_repr(self) -> str:
        """The arguments, for the module's repr."""
        return (
            f"weight={self.weight}, sigma_rgb={self.sigma_rgb}, sigma_xy={self.sigma_xy}, "
            f"scale_factor={self.scale_factor}, quality={self.quality!r}"
        )


def _check(
    images: Tensor, segmentations: Tensor, rois: Tensor | None, seg_label: Tensor | None
) -> None:
    tensors = {"images": images, "segmentations": segmentations}
    optional = {"ROIs": rois, "seg_label": seg_label}
    for name, t in (tensors | {n: t for n, t in optional.items() if t is not None}).items():
        if not isinstance(t, Tensor):
            or_none = " or None" if name in optional else ""
            raise TypeError(
                f"DenseEnergyLoss: {name} must be a tensor{or_none}, got {type(t).__name__}"
            )
        if t.dtype.is_complex:
            raise ValueError(f"DenseEnergyLoss: {name} must be real, got {t.dtype}")
    shape = tuple(segmentations.shape)
    if len(shape) != 4 or 0 in shape[1:]:
        raise ValueError(
            f"DenseEnergyLoss: segmentations must be (N, K, H, W), not empty but for N, got shape "
            f"{shape}"
        )
    if not segmentations.dtype.is_floating_point or segmentations.dtype.itemsize < 2:
        raise ValueError(
            "DenseEnergyLoss: segmentations must be float32, float64, float16 or bfloat16, got "
            f"{segmentations.dtype}"
        )
    n, _, h, w = shape
    came = tuple(images.shape)
    if len(came) != 4 or (came[0], *came[2:]) != (n, h, w) or not 1 <= came[1] <= 6:
        raise ValueError(
            f"DenseEnergyLoss: images must be ({n}, C, {h}, {w}) with C from 1 to 6, got shape "
            f"{came}"
        )
    if rois is not None and tuple(rois.shape) != (n, h, w):
        raise ValueError(
            f"DenseEnergyLoss: ROIs must be ({n}, {h}, {w}), got shape {tuple(rois.shape)}"
        )
    if seg_label is not None and tuple(seg_label.shape) not in ((n, h, w), (n, 1, h, w)):
        raise ValueError(
            f"DenseEnergyLoss: seg_label must be ({n}, {h}, {w}) or ({n}, 1, {h}, {w}), got shape "
            f"{tuple(seg_label.shape)}"
        )
