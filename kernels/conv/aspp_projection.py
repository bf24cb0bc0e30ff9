"""The projection of an ASPP's branches on NVIDIA GPUs: one product with the batch norm behind it.

    y = act((z project_weight^T + pool_bias) * project_scale + project_shift)

`pool_bias` is what the pooled branch, constant over an image, adds to the sums.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseg.kernels.common import device_of, input_precision, precision_of
from fastseg.kernels.conv import configs
from fastseg.kernels.conv.arguments import Product
from fastseg.kernels.conv.cost import step_time
from fastseg.kernels.conv.epilogue import Operands, epilogue
from fastseg.kernels.conv.launch import with_descriptor_memory
from fastseg.kernels.conv.layouts import empty_channels_last, rows_aligned
from fastseg.kernels.conv.rates import rates_of
from fastseg.kernels.conv.recording import Recording


@triton.jit
def project_kernel(
    z,
    weight,
    out,
    pool_bias,
    operands,
    sizes,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program (row block * sizes.blocks + c): BM pixels of z (rows, channels) by BN outputs.

    operands: the scale and the shift of an `Operands`. sizes: a `Product`.
    """
    rows, channels, outputs = sizes.rows, sizes.channels, sizes.outputs
    row = tl.program_id(0) // sizes.blocks * BM
    column = tl.program_id(0) % sizes.blocks * BN
    pixel, channel = row + tl.arange(0, BM), column + tl.arange(0, BN)
    k = tl.arange(0, BK)
    if ALIGNED:
        z_tiles = tl.make_tensor_descriptor(
            z, shape=[rows, channels], strides=[channels, 1], block_shape=[BM, BK]
        )
        weight_tiles = tl.make_tensor_descriptor(
            weight,
            shape=[outputs, channels],
            strides=[sizes.weight_stride, 1],
            block_shape=[BN, BK],
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
                weight + channel.to(tl.int64)[None, :] * sizes.weight_stride + (first + k)[:, None],
                exists[:, None] & (channel < outputs)[None, :],
                0.0,
            )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    channel_exists = (channel < outputs)[None, :]
    exists = (pixel < rows)[:, None] & channel_exists
    if pool_bias is not None:
        image = pixel // sizes.plane
        at = image.to(tl.int64)[:, None] * outputs + channel[None, :]
        sums += tl.load(pool_bias + at, exists, 0.0).to(tl.float32)
    at = pixel.to(tl.int64)[:, None] * outputs + channel[None, :]
    sums = epilogue(sums, operands, channel[None, :], channel_exists, at, exists, ACTIVATION)
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)


@functools.lru_cache(maxsize=1024)
def project_config(
    rows: int, channels: int, outputs: int, device: torch.device, precision: str
) -> configs.Config:
    """The table's entry whose programs should be done first."""
    processors, rates = device_of(device).multiprocessors, rates_of(device)

    def time(config: configs.Config) -> float:
        programs = triton.cdiv(rows, config.BM) * triton.cdiv(outputs, config.BN)
        steps = triton.cdiv(programs, processors) * triton.cdiv(channels, config.BK)
        return steps * step_time(config, precision, rates)

    return min(configs.candidates(device, precision, outputs, wide=False), key=time)


def project(
    z: Tensor,
    weight: Tensor,
    pool_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    recording: Recording,
) -> Tensor:
    """``act((z weight^T + pool_bias) * scale + shift)`` for each pixel.

    Args:
        z: (N, K, H, W), channels_last.
        weight: (Co, K), rows of any stride.
        pool_bias: (N, Co) or None.
        scale: (Co,) or None.
        shift: (Co,) or None.
        activation: its name, or "".
        recording: the recording that the tensors belong to.

    Returns:
        (N, Co, H, W), z's dtype, channels_last.
    """
    n, channels, height, width = z.shape
    outputs, rows = weight.shape[0], n * height * width
    precision = precision_of(z.dtype)
    config = project_config(rows, channels, outputs, z.device, precision)
    out = recording.output(empty_channels_last(z, (n, outputs, height, width)))
    if weight.stride(1) != 1 or weight.stride(0) < channels:  # as of an expanded one
        weight = recording.derive(Tensor.contiguous, weight)
    pool_bias, scale, shift = (
        None if t is None else recording.derive(Tensor.contiguous, t)
        for t in (pool_bias, scale, shift)
    )
    columns = triton.cdiv(outputs, config.BN)
    with_descriptor_memory(
        z,
        lambda: recording.launch(
            project_kernel,
            (triton.cdiv(rows, config.BM) * columns,),
            z,
            weight,
            out,
            pool_bias,
            Operands(scale=scale, shift=shift),
            Product(rows, height * width, channels, outputs, weight.stride(0), columns),
            *config[:3],
            ALIGNED=rows_aligned(z, channels) and rows_aligned(weight, weight.stride(0)),
            PRECISION=input_precision(precision),
            ACTIVATION=activation,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        ),
    )
    return out
