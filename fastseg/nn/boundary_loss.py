"""The boundary loss: probabilities weighted by their distance to the target's boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastseg.nn._class_maps import ClassMapLoss
from fastseg.ops.head.distance_transform import distance_transform, spacing_of_axes


class BoundaryLoss(ClassMapLoss):
    """Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019.

    ``mean(p * phi)`` over all elements of all classes that count, with phi the signed distance to
    the boundary of a class in the target: the distance to the class outside of it, and the least
    spacing minus the distance to what is outside within it, so that its outermost elements are 0.
    With a spacing of 1 it is the authors' ``SurfaceLoss``. Maps of classes that an image lacks or
    consists of are 0: they have no boundary. The loss may be negative, and is meant beside a
    regional one such as Dice::

        boundary = fastseg.nn.BoundaryLoss(to_onehot_y=True, softmax=True)
        loss = dice(logits, labels) + alpha * boundary(logits, labels)

    The distances come from :func:`fastseg.distance_transform` in each step, on the target's device.

    Args:
        include_background: whether channel 0 counts.
        to_onehot_y: whether the target holds labels, (N, 1, ...), in place of one channel for each
            class. A label that no channel has belongs to no class.
        sigmoid: whether the input's sigmoid is taken.
        softmax: whether the input's softmax over the channels is taken.
        other_act: another activation, or None.
        reduction: "mean" over all elements, "sum", or "none".
        spacing: distance between neighbours, one number or one for each spatial axis.

    Raises:
        ValueError: more than one activation, or an unknown reduction.
        TypeError: other_act is not callable.
    """

    def __init__(
        self,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        reduction: str = "mean",
        *,
        spacing: float | Sequence[float] | None = None,
    ):
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction)
        self.spacing = spacing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss, a scalar or, with reduction "none", a value for each element.

        Args:
            input: (N, C, H, W) or (N, C, D, H, W): logits or probabilities.
            target: of input's shape, or labels (N, 1, ...); more than 0.5 is inside.
        """
        probabilities, target = self.class_maps(input, target)
        return self.reduced(probabilities * signed_distance(target > 0.5, self.spacing))


def signed_distance(inside: Tensor, spacing: float | Sequence[float] | None) -> Tensor:
    """Returns phi of :class:`BoundaryLoss` for masks (N, C, ...), in float32."""
    dims = inside.dim() - 2
    outer = distance_transform(~inside, dims, spacing=spacing)
    inner = distance_transform(inside, dims, spacing=spacing)
    phi = torch.where(inside, min(spacing_of_axes(dims, spacing)) - inner, outer)
    return phi.masked_fill(phi.isinf(), 0)
