"""A whole ASPP on the CPU where no gradient is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.conv2d import Conv2d
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg.ops.conv.cpu_kernels import winograd_weight
from fastseg.ops.conv.cpu_plan import atrous_conv2d, has_one_live_tap, prefers_winograd
from fastseg.ops.conv.prepared_weights import prepared
from fastseg.ops.conv.winograd_conv2d import winograd_branches


def aspp(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    dilations: Sequence[int],
    project: Tensor | None,
    project_scale: Tensor | None,
    project_shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor | None:
    """Computes all branches that suit Winograd's kernel at once, then the projection.

    Their maps lie side by side in one tensor, which the projection reads as one matrix. The other
    branches add their share to the projection's residual one after the other. The arguments are
    those of fastseg::aspp, already checked, except the residual, which is the pooled branch's share
    of the output (N, Co, H, W) or None.

    Returns:
        The output; None without a projection, or where fewer than two branches that follow each
        other suit the kernel.
    """
    convs = [
        Conv2d((1, 1), tuple(d * (k // 2) for k in w.shape[2:]), (d, d), 1)
        for w, d in zip(weights, dilations, strict=True)
    ]
    suited = [
        i
        for i, (w, conv) in enumerate(zip(weights, convs, strict=True))
        if x.dtype == torch.float32
        and not has_one_live_tap(x, w, conv)
        and prefers_winograd(x, w, conv)
    ]
    if project is None or len(suited) < 2 or suited[-1] - suited[0] != len(suited) - 1:
        return None
    chosen = slice(suited[0], suited[-1] + 1)
    channels, fast = [w.shape[0] for w in weights], reduced_on_cpu()
    maps = winograd_branches(
        x,
        [
            winograd_weight(w, x.shape[2:], (d, d), fast)
            for w, d in zip(weights[chosen], dilations[chosen], strict=True)
        ],
        channels[chosen],
        _side_by_side(weights[chosen], scales[chosen], 1.0),
        _side_by_side(weights[chosen], shifts[chosen], 0.0),
        dilations[chosen],
        fast,
        activation,
    )
    point = Conv2d((1, 1), (0, 0), (1, 1), 1)
    total, first = residual, 0
    for i, (weight, conv) in enumerate(zip(weights, convs, strict=True)):
        if i == chosen.start:
            begin = first
        if i not in suited:
            y = atrous_conv2d(x, weight, None, scales[i], shifts[i], None, conv, activation)
            share = project[:, first : first + channels[i]]
            total = atrous_conv2d(y, share, None, project_scale, None, total, point, "")
        first += channels[i]
    share = project[:, begin : begin + maps.shape[1]]
    return atrous_conv2d(maps, share, None, project_scale, project_shift, total, point, activation)


def _side_by_side(
    weights: Sequence[Tensor], vectors: Sequence[Tensor | None], missing: float
) -> Tensor | None:
    """Returns the branches' scales or shifts as one vector, or None if they have none."""
    if all(v is None for v in vectors):
        return None

    def concatenate():
        parts = zip(weights, vectors, strict=True)
        return torch.cat(
            [w.new_full((w.shape[0],), missing) if v is None else v.float() for w, v in parts]
        )

    form = ("side by side", missing, *(w.shape[0] for w in weights))
    return prepared(weights[0], vectors, form, concatenate)
