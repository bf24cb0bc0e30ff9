"""The projection of an ASPP, computed as a sum over its branches, and the pooled branch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fastseg._core.formulas import compute_dtype
from fastseg.ops.conv.aspp_branch import ASPPBranch
from fastseg.ops.conv.atrous_conv2d import atrous_conv2d


def split_project(weight: Tensor, pool: ASPPBranch, pool_first: bool) -> tuple[Tensor, Tensor]:
    """Returns the parts of the projection's weight for the maps and for the pooled branch."""
    n = pool.weight.shape[0]
    if pool_first:
        return weight[:, n:], weight[:, :n]
    return weight[:, :-n], weight[:, -n:]


def image_pooling(x: Tensor, pool: ASPPBranch, activation: str | None) -> Tensor:
    """Returns the average over each map, convolved: (N, C, 1, 1)."""
    mean = x.mean((2, 3), keepdim=True, dtype=compute_dtype(x.dtype)).to(x.dtype)
    return atrous_conv2d(
        mean, pool.weight, scale=pool.scale, shift=pool.shift, activation=activation
    )


def project_maps(
    maps: Iterable[Tensor],
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Returns ``act(conv2d(concat(*maps), weight) * scale + shift + residual)``, map by map.

    A map is taken from the iterator only after the one before has been added to the sum.

    Args:
        maps: tensors of shape (N, C_i, H, W).
        weight: (Co, sum C_i, kh, kw).
        scale: (Co,) or None. It multiplies every summand: the sum goes through the residual.
        shift: (Co,) or None. It is added with the last map, before the activation.
        activation: the activation's name in :func:`fastseg.atrous_conv2d`, or None.
        residual: (N, Co, H, W), with which the sum begins, or None.
    """
    total, first = residual, 0
    for y in maps:
        end = first + y.shape[1]
        last = end == weight.shape[1]
        total = atrous_conv2d(
            y,
            weight[:, first:end],
            scale=scale,
            shift=shift if last else None,
            activation=activation if last else None,
            residual=total,
        )
        first = end
    return total


def project_pooled(
    pooled: Tensor, weight: Tensor, scale: Tensor | None, size: Sequence[int]
) -> Tensor:
    """Returns ``conv2d(p, weight) * scale``, (N, Co, H, W), for p that is constant over each map.

    Args:
        pooled: the values of p, (N, C, 1, 1).
        weight: (Co, C, kh, kw).
        scale: (Co,) or None.
        size: (H, W).
    """
    if tuple(weight.shape[2:]) != (1, 1):  # the taps at the border read padding
        return atrous_conv2d(pooled.expand(-1, -1, *size), weight, scale=scale)
    return atrous_conv2d(pooled, weight, scale=scale).expand(-1, -1, *size)


def pooled_share(x: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor | None:
    """Returns the pooled branch's summand of every pixel, (N, Co, H, W), from its bias (N, Co)."""
    if bias is None:
        return None
    bias = bias.to(compute_dtype(x.dtype))
    bias = bias if scale is None else bias * scale
    return bias.to(x.dtype)[..., None, None].expand(-1, -1, *x.shape[2:])
