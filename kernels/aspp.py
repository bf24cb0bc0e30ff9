"""Atrous spatial pyramid pooling on NVIDIA GPUs (Chen et al. 2017, arXiv 1706.05587).

    z = (act(conv_b(x) * scale_b + shift_b) for each branch b), side by side
    y = act((z project_weight^T + pool_bias) * project_scale + project_shift)

in two or three kernels: all branches, the 1x1 included, in one launch of
:mod:`fastseg.kernels.atrous_conv2d_kernel`, whose programs store their columns of z, (N * H * W,
branches * C), so that nothing is concatenated; where the GPU is not filled, the sums of split
tiles; the projection. The branch of the pooled image is constant over an image: `pool_bias` is
what it adds to the projection's sums.

The sum of branches of DeepLab v2 (Chen et al. 2016, arXiv 1606.00915), ``y = act(sum_b conv_b(x) +
shift_b)``, is one product over the taps of all branches: a tile's pixels share their live taps in
every branch.

Floor: that of the branches (see the kernel's), then 2 * N * H * W * branches * C * Co FLOPs of the
projection, and z written and read once: for 33 x 33 and 4 branches of 256 channels in bfloat16 at
a batch of 8 6 microseconds of FLOPs, 12 of bytes on an H100. These figures are arithmetic: no run
on a GPU stands behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastseg.kernels import atrous_conv2d_configs as configs
from fastseg.kernels.atrous_conv2d_launch import (
    Epilogue,
    channels_last,
    empty_channels_last,
    in_layout_of,
    input_precision,
    launch_of,
    precision_of,
    processors,
    rows_aligned,
    run,
    with_descriptor_memory,
)
from fastseg.kernels.atrous_conv2d_tiles import Branch
from fastseg.kernels.conv2d_epilogue import epilogue
from torch import Tensor

from fastseg import reference


@triton.jit
def project_kernel(
    z, weight, out, pool_bias, scale, shift, rows, plane, channels, outputs, weight_stride,
    columns, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Program (row block * columns + c): BM pixels of z (rows, channels) by BN outputs."""
    row = tl.program_id(0) // columns * BM
    column = tl.program_id(0) % columns * BN
    pixel, channel = row + tl.arange(0, BM), column + tl.arange(0, BN)
    k = tl.arange(0, BK)
    if ALIGNED:
        z_tiles = tl.make_tensor_descriptor(
            z, shape=[rows, channels], strides=[channels, 1], block_shape=[BM, BK]
        )
        weight_tiles = tl.make_tensor_descriptor(
            weight, shape=[outputs, channels], strides=[weight_stride, 1], block_shape=[BN, BK]
        )
    sums = tl.zeros((BM, BN), tl.float32)
    for first in range(0, channels, BK):
        if ALIGNED:
            a = z_tiles.load([row, first])
            b = weight_tiles.load([column, first]).T
        else:
            exists = first + k < channels
            a = tl.load(
                z + pixel.to(tl.int64)[:, None] * channels + (first + k)[None, :],
                (pixel < rows)[:, None] & exists[None, :],
                0.0,
            )
            b = tl.load(
                weight + channel.to(tl.int64)[None, :] * weight_stride + (first + k)[:, None],
                exists[:, None] & (channel < outputs)[None, :],
                0.0,
            )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    channel_exists = (channel < outputs)[None, :]
    exists = (pixel < rows)[:, None] & channel_exists
    if pool_bias is not None:
        image = pixel // plane
        at = image.to(tl.int64)[:, None] * outputs + channel[None, :]
        sums += tl.load(pool_bias + at, exists, 0.0).to(tl.float32)
    at = pixel.to(tl.int64)[:, None] * outputs + channel[None, :]
    sums = epilogue(
        sums, None, scale, shift, None, channel[None, :], channel_exists, at, exists, ACTIVATION
    )
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)


def project_config(rows: int, channels: int, outputs: int, device: torch.device, precision: str):
    """The table's entry whose programs should be done first."""
    return min(
        configs.candidates(device, precision, outputs, wide=False),
        key=lambda c: (
            triton.cdiv(triton.cdiv(rows, c.BM) * triton.cdiv(outputs, c.BN), processors(device))
            * triton.cdiv(channels, c.BK)
            * c.step(precision)
        ),
    )


def project(
    z: Tensor,
    weight: Tensor,
    pool_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
) -> Tensor:
    """``act((z weight^T + pool_bias) * scale + shift)`` for each pixel.

    Args:
        z: (N, K, H, W), channels_last.
        weight: (Co, K), rows of any stride.
        pool_bias: (N, Co) or None.
        scale: (Co,) or None.
        shift: (Co,) or None.
        activation: its name, or "".

    Returns:
        (N, Co, H, W), z's dtype, channels_last.
    """
    n, channels, height, width = z.shape
    outputs, rows = weight.shape[0], n * height * width
    precision = precision_of(z.dtype)
    config = project_config(rows, channels, outputs, z.device, precision)
    out = empty_channels_last(z, (n, outputs, height, width))
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    vectors = [None if t is None else t.contiguous() for t in (pool_bias, scale, shift)]
    columns = triton.cdiv(outputs, config.BN)
    aligned = rows_aligned(z, channels) and rows_aligned(weight, weight.stride(0))
    with_descriptor_memory(
        z,
        lambda: project_kernel[(triton.cdiv(rows, config.BM) * columns,)](
            z, weight, out, *vectors, rows, height * width, channels, outputs, weight.stride(0),
            columns, *config[:3], ALIGNED=aligned, PRECISION=input_precision(precision),
            ACTIVATION=activation, num_warps=config.num_warps, num_stages=config.num_stages,
            enable_fp_fusion=True,
        ),
    )  # fmt: skip
    return out


def aspp(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor] | None,
    shifts: Sequence[Tensor] | None,
    dilations: Sequence[int | Sequence[int]],
    project_weight: Tensor | None,
    project_scale: Tensor | None,
    project_shift: Tensor | None,
    pool_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """The pyramid; its arguments are checked.

    Args:
        x: (N, Ci, H, W), any strides.
        weights: of each branch (C, Ci, k, k), k odd; its padding keeps the size.
        scales: of each branch (C,), or None; None where branches are summed.
        shifts: of each branch (C,), or None.
        dilations: of each branch, one integer or (vertical, horizontal).
        project_weight: (Co, branches * C), also with two more dimensions of 1 and as a slice of
            wider rows; None: the branches are summed.
        project_scale: (Co,) or None.
        project_shift: (Co,) or None.
        pool_bias: (N, Co), the pooled image's part of the projection, or None.
        activation: after each branch and after the projection, or after the sum.

    Returns:
        (N, Co, H, W), or (N, C, H, W) of the sum; x's dtype, channels_last if x is, else
        contiguous.
    """
    summed = project_weight is None
    if project_weight is not None:
        project_weight = project_weight.reshape(project_weight.shape[0], -1)
    branches = [same_branch(w, d) for w, d in zip(weights, dilations, strict=True)]
    if x.dtype == torch.float64 or x.numel() == 0:
        ending = (project_weight, project_scale, project_shift, pool_bias, activation)
        return in_layout_of(x, _composed(x, weights, scales, shifts, branches, *ending))
    outputs = weights[0].shape[0]
    launch = launch_of(x, outputs, branches, summed=summed)
    columns = outputs if summed else outputs * len(branches)
    z = empty_channels_last(x, (x.shape[0], columns, *x.shape[2:]))
    ending = Epilogue(scales=scales, shifts=shifts, activation=activation)
    run(launch, channels_last(x), [channels_last(w) for w in weights], z, ending)
    if not summed:
        vectors = (pool_bias, project_scale, project_shift)
        z = project(z, project_weight, *vectors, activation)
    return in_layout_of(x, z)


def same_branch(weight: Tensor, dilation: int | Sequence[int]) -> Branch:
    """Of stride 1, with the padding that keeps the size."""
    kernel = tuple(weight.shape[2:])
    pair = (dilation, dilation) if isinstance(dilation, int) else tuple(dilation)
    padding = tuple(d * (k // 2) for k, d in zip(kernel, pair, strict=True))
    return Branch(kernel, (1, 1), padding, pair)


def _composed(
    x, weights, scales, shifts, branches, project_weight, project_scale, project_shift, pool_bias,
    activation,
):  # fmt: skip
    """Of torch's ops."""
    none = [None] * len(weights)
    after = "" if project_weight is None else activation
    parts = [
        reference.atrous_conv2d(x, w, None, scale, shift, None, *branch[1:], 1, after)
        for w, scale, shift, branch in zip(
            weights, scales or none, shifts or none, branches, strict=True
        )
    ]
    if project_weight is None:
        return reference.conv2d_epilogue(sum(parts), *[None] * 4, activation)
    y = torch.conv2d(torch.cat(parts, 1), project_weight[:, :, None, None])
    pool = None if pool_bias is None else pool_bias.to(y.dtype)[:, :, None, None]
    y = y if pool is None else y + pool
    return reference.conv2d_epilogue(y, None, project_scale, project_shift, None, activation)
