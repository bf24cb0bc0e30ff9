"""Atrous spatial pyramid pooling on NVIDIA GPUs (Chen et al. 2017, arXiv 1706.05587).

    z = (act(conv_b(x) * scale_b + shift_b) for each branch b), side by side
    y = act((z project_weight^T + pool_bias) * project_scale + project_shift)

in two or three kernels: all branches, the 1x1 included, in one launch of
:mod:`fastseg.kernels.conv.forward`, whose programs store their columns of z, (N * H * W,
branches * C), so that nothing is concatenated; where the GPU is not filled, the sums of split
tiles; the projection. The branch of the pooled image is constant over an image: `pool_bias` is
what it adds to the projection's sums.

The sum of branches of DeepLab v2 (Chen et al. 2016, arXiv 1606.00915),
``y = sum_b conv_b(x) + shift_b``, is one product over the taps of all branches: a tile's pixels
share their live taps in every branch.

Floor: that of the branches (see the kernel's), then 2 * N * H * W * branches * C * Co FLOPs of the
projection, and z written and read once: for 33 x 33 and 4 branches of 256 channels in bfloat16 at
a batch of 8 6 microseconds of FLOPs, 12 of bytes on an H100. These figures are arithmetic: no run
on a GPU stands behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core import prepared_calls
from fastseg import reference
from fastseg._core.conv2d import in_layout_of
from fastseg.kernels.conv import few_outputs
from fastseg.kernels.conv.aspp_projection import project
from fastseg.kernels.conv.atrous_conv2d import atrous_conv2d
from fastseg.kernels.conv.choice import (
    FEW_OUTPUTS,
    JOINED,
    TORCH,
    choose_form,
    join_weights,
    joined,
)
from fastseg.kernels.conv.geometry import Branch
from fastseg.kernels.conv.image_pooling import pool_bias
from fastseg.kernels.conv.launch import Epilogue, launch_of, run
from fastseg.kernels.conv.layouts import channels_last, empty_channels_last
from fastseg.kernels.conv.recording import Recording


def aspp(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    dilations: Sequence[int],
    project_weight: Tensor | None,
    project_scale: Tensor | None,
    project_shift: Tensor | None,
    pool_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """See :func:`fastseg.reference.aspp`; its arguments are checked.

    Branches of different widths are launched one by one, and so are summed branches that have
    scales, whose partial sums are rounded to x's dtype; float64 takes the reference.
    """
    ending = (project_weight, project_scale, project_shift, pool_bias, activation)
    if x.dtype == torch.float64 or x.numel() == 0:
        out = reference.aspp(x, weights, scales, shifts, dilations, *ending)
        return in_layout_of(x, out)
    recording = Recording((x, *weights, *scales, *shifts, *ending[:4]))
    out = _aspp(x, weights, scales, shifts, dilations, *ending, recording)
    return recording.keep("aspp", (len(weights), tuple(dilations), activation), out)


def aspp_with_pooling(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    dilations: Sequence[int],
    project: Sequence[Tensor | None],
    pool: Sequence[Tensor | None],
    pool_first: bool,
    activation: str,
) -> Tensor:
    """An ASPP with its pooled branch, see :func:`fastseg.aspp`; its arguments are checked.

    Args:
        x: (N, Ci, H, W), not empty, not float64.
        weights: the weights of the branches.
        scales: their scales.
        shifts: their shifts.
        dilations: their rates.
        project: the projection's weight (Co, K, 1, 1), scale and shift.
        pool: the pooled branch's weight (C, Ci, 1, 1), scale and shift.
        pool_first: whether the pooled branch's channels are the first of the projection's weight.
        activation: its name, or "".
    """
    tensors = (x, *weights, *scales, *shifts, *project, *pool)
    options = (len(weights), tuple(dilations), activation, pool_first)
    out = prepared_calls.run("aspp", tensors, options)
    if out is not None:  # as of a device that was not the current one before
        return out
    recording = Recording(tensors)
    x_last = recording.derive(channels_last, x)
    weight, scale, shift = pool
    split = weight.shape[0] if pool_first else project[0].shape[1] - weight.shape[0]

    def first(w: Tensor) -> Tensor:
        return w[:, :split]

    def second(w: Tensor) -> Tensor:
        return w[:, split:]

    parts = recording.derive(first, project[0]), recording.derive(second, project[0])
    by_pool, by_maps = parts if pool_first else parts[::-1]
    rows = recording.derive(_as_rows, weight), recording.derive(_as_rows, by_pool)
    bias = pool_bias(x_last, rows[0], scale, shift, rows[1], activation, recording)
    ending = (by_maps, *project[1:], bias, activation, recording)
    out = _aspp(x_last, weights, scales, shifts, dilations, *ending)
    out = recording.derive(in_layout_of, x, out)
    return recording.keep("aspp", options, out)


def _aspp(
    x,
    weights,
    scales,
    shifts,
    dilations,
    project_weight,
    project_scale,
    project_shift,
    pool_bias,
    activation,
    recording,
):
    """`aspp`, in a recording."""
    summed = project_weight is None
    z = _branches(x, weights, scales, shifts, dilations, summed, activation, recording)
    if not summed:
        rows = recording.derive(_as_rows, project_weight)
        vectors = (pool_bias, project_scale, project_shift)
        z = project(z, rows, *vectors, activation, recording)
    return recording.derive(in_layout_of, x, z)


def _as_rows(weight: Tensor) -> Tensor:
    """A weight (Co, K, 1, 1) as (Co, K)."""
    return weight.flatten(1)


def _branches(x, weights, scales, shifts, dilations, summed, activation, recording):
    """The branches side by side, (N, sum of C, H, W), or their sum, (N, C, H, W); channels_last."""
    branches = [same_branch(w, d) for w, d in zip(weights, dilations, strict=True)]
    outputs = weights[0].shape[0]
    x = recording.derive(channels_last, x)
    if any(w.shape[0] != outputs for w in weights):
        form = TORCH  # or what each branch of its own chooses
    else:
        launch = launch_of(x, outputs, branches, summed=summed)
        followed = activation != "" or any(v is not None for v in (*scales, *shifts))
        form = choose_form(launch, followed)
    each = zip(weights, scales, shifts, branches, strict=True)
    if summed and (form == TORCH or any(scale is not None for scale in scales)):
        total = None
        for w, scale, shift, branch in each:
            total = atrous_conv2d(x, w, None, scale, shift, total, *branch[1:], 1, activation)
        return total
    if form == TORCH:
        parts = [
            atrous_conv2d(x, w, None, scale, shift, None, *branch[1:], 1, activation)
            for w, scale, shift, branch in each
        ]
        return channels_last(torch.cat(parts, 1))
    width = outputs if summed else outputs * len(branches)
    z = empty_channels_last(x, (x.shape[0], width, *x.shape[2:]))
    z = recording.output(z) if summed else recording.temporary(z)
    vectors = {
        "scales": _alike(scales, 1.0, recording),
        "shifts": _alike(shifts, 0.0, recording),
    }
    ending = Epilogue(**vectors, activation=activation)
    if form == JOINED:
        if ending.shifts is not None:
            ending = ending._replace(shifts=[recording.derive(_sum, *ending.shifts)])
        weights = [recording.derive(join_weights, *weights)]
        return run(joined(launch), x, weights, z, ending, recording=recording)
    compute = few_outputs.run if form == FEW_OUTPUTS else run
    weights = [recording.derive(channels_last, w) for w in weights]
    return compute(launch, x, weights, z, ending, recording=recording)


def _sum(*vectors: Tensor) -> Tensor:
    return torch.stack([v.float() for v in vectors]).sum(0)


def _alike(
    vectors: Sequence[Tensor | None], neutral: float, recording: Recording
) -> list[Tensor] | None:
    """The vectors in one dtype, the neutral element for each that is None; None if all are."""
    given = [v for v in vectors if v is not None]
    if not given:
        return None
    dtype = given[0].dtype if len({v.dtype for v in given}) == 1 else torch.float32

    def fill(like: Tensor) -> Tensor:
        return torch.full_like(like, neutral, dtype=dtype)

    def cast(v: Tensor) -> Tensor:
        return v.to(dtype)

    other = recording.derive(fill, given[0]) if len(given) < len(vectors) else None
    return [other if v is None else recording.derive(cast, v) for v in vectors]


def same_branch(weight: Tensor, dilation: int) -> Branch:
    """The branch of stride 1 with the padding that keeps the size."""
    kernel = tuple(weight.shape[2:])
    padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
    return Branch(kernel, (1, 1), padding, (dilation, dilation))
