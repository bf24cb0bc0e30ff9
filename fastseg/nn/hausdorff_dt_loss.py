"""The Hausdorff loss by distance transforms, with MONAI's options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastseg.nn._class_maps import ClassMapLoss
from fastseg.ops.head.distance_transform import distance_transform


class HausdorffDTLoss(ClassMapLoss):
    """Karimi and Salcudean, "Reducing the Hausdorff Distance in Medical Image Segmentation", 2019.

    ``mean((p - t)^2 (d_p^alpha + d_t^alpha))`` of each image and class, with d_p and d_t the
    distances to the boundary of ``p > 0.5`` and of the target, on both sides of it; 0 in images of
    one side alone. Distances have no gradient. It is ``monai.losses.HausdorffDTLoss``, to rounding,
    with its arguments and its defaults; :func:`fastseg.distance_transform` takes all images and
    classes at once, on the input's device.

    Args:
        alpha: exponent of the distances.
        include_background: whether channel 0 counts.
        to_onehot_y: whether the target holds labels, (N, 1, ...), in place of one channel for each
            class. A label that no channel has belongs to no class.
        sigmoid: whether the input's sigmoid is taken.
        softmax: whether the input's softmax over the channels is taken.
        other_act: another activation, or None.
        reduction: "mean" over images and classes, "sum", or "none" for (N, C, 1, 1) or
            (N, C, 1, 1, 1).
        batch: whether the mean of a class is over all images at once.
        spacing: distance between neighbours, one number or one for each spatial axis.

    Raises:
        ValueError: more than one activation, or an unknown reduction.
        TypeError: other_act is not callable.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        batch: bool = False,
        *,
        spacing: float | Sequence[float] | None = None,
    ):
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.alpha = alpha
        self.batch = batch
        self.spacing = spacing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss, a scalar or, with reduction "none", a value for each image and class.

        Args:
            input: (N, C, H, W) or (N, C, D, H, W): logits or probabilities.
            target: of input's shape, or labels (N, 1, ...); more than 0.5 is inside.
        """
        probabilities, target = self.class_maps(input, target)
        distance = sum(
            boundary_distance(maps.detach() > 0.5, self.alpha, self.spacing)
            for maps in (probabilities, target)
        )
        error = (probabilities - target).square() * distance
        spatial = range(2, input.dim())
        return self.reduced(error.mean([0, *spatial] if self.batch else [*spatial], keepdim=True))


def boundary_distance(
    inside: Tensor, alpha: float, spacing: float | Sequence[float] | None
) -> Tensor:
    """Returns ``d^alpha`` of the distance to the nearest element of the other side, in float32.

    Args:
        inside: bool, (N, C, ...); distances are 0 in images without another side.
        alpha: the exponent.
        spacing: as of the loss.
    """
    dims = inside.dim() - 2
    d2 = torch.where(
        inside,
        distance_transform(inside, dims, spacing=spacing, squared=True),
        distance_transform(~inside, dims, spacing=spacing, squared=True),
    )
    d2 = d2.masked_fill(d2.isinf(), 0)
    return d2 if alpha == 2 else d2 ** (alpha / 2)
