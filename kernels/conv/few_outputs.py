"""Launches of convolutions with few outputs: plan, block shape, modelled time, kernels.

:mod:`fastseg.kernels.conv.tap_products` says what the kernels compute. The product is a kernel of
its own, not torch.mm, which can give float32 for 16-bit factors too: that would take the weights of
several branches side by side, a copy in each call, and multiply what falls into padding. DeepLab
v2's head, 2048 -> 21 on 41 x 41 in a batch of 8, would have 1.6 times the products and by the model
take some 95 microseconds on an H200 where this takes 83.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from fastseg.kernels.common import device_of, input_precision
from fastseg.kernels.conv import configs
from fastseg.kernels.conv.cost import moved_time, times_of
from fastseg.kernels.conv.epilogue import Operands
from fastseg.kernels.conv.geometry import Branch, Sizes
from fastseg.kernels.conv.launch import Epilogue, Launch
from fastseg.kernels.conv.layouts import rows_aligned
from fastseg.kernels.conv.makespan import makespan
from fastseg.kernels.conv.plan import tiles_of
from fastseg.kernels.conv.plan_cache import cache, pack
from fastseg.kernels.conv.rates import rates_of
from fastseg.kernels.conv.recording import Recording
from fastseg.kernels.conv.tap_products import (
    UNROLL,
    VECTOR,
    Maps,
    ProductForm,
    add_taps_kernel,
    tap_products_kernel,
)

MOST_OUTPUTS = 64
"""Of a branch: with more an implicit product keeps the matrix units as busy."""

MOST_BYTES = 1 << 29
"""Of a part of the products, which 32 bits count: larger ones are left to the other forms."""

PARTS = (1, 2, 3, 4)
"""Numbers of parts that the channels may be summed in, so that small maps fill the GPU."""

PIXELS = 16
"""Number of outputs of one program of add_taps_kernel."""

WAIT = 0.7
"""Microseconds from a load to its value, an estimate."""

NEVER = -(1 << 30)
"""A shift that leaves every map."""


class Plan(NamedTuple):
    """A plan as the kernels read it, see :mod:`fastseg.kernels.conv.tap_products`.

    Attributes:
        buffer: all of the plan, int32; the other tensors are its parts.
        items: (items, 5).
        pixels: (tiles, BM): pixels of x, counted over (N, H, W).
        columns: (entries, 3).
        taps: (taps, 3).
    """

    buffer: Tensor
    items: Tensor
    pixels: Tensor
    columns: Tensor
    taps: Tensor


class Way(NamedTuple):
    """How a launch's products are computed.

    Attributes:
        config: the block shape.
        parts: number of parts that the channels are summed in.
    """

    config: configs.Config
    parts: int


def pitch_of(outputs: int) -> int:
    """The number of the products' columns for one tap."""
    return triton.cdiv(outputs, VECTOR.value) * VECTOR.value


def stride_of(branches: tuple[Branch, ...], outputs: int) -> int:
    """The number of the products' columns, a multiple of 16."""
    return triton.cdiv(sum(b.taps for b in branches) * pitch_of(outputs), 16) * 16


def is_possible(launch: Launch) -> bool:
    """Whether the kernels can compute a launch."""
    one_output = launch.summed or len(launch.branches) == 1
    if not one_output or launch.transposed or launch.branches[0].stride != (1, 1):
        return False
    pixels = launch.sizes.batch * launch.sizes.height * launch.sizes.width
    columns = stride_of(launch.branches, launch.outputs)
    return launch.outputs <= MOST_OUTPUTS and 4 * pixels * columns <= MOST_BYTES


def input_tiles(sizes: Sizes, branches: tuple[Branch, ...], tile: int):
    """Tiles of pixels of x that share the taps by which outputs read them."""
    transposed = Sizes(sizes.batch, *sizes[3:], *sizes[1:3])
    reversed_taps = tuple(
        Branch(
            b.kernel_size,
            (1, 1),
            tuple(
                d * (k - 1) - p
                for d, k, p in zip(b.dilation, b.kernel_size, b.padding, strict=True)
            ),
            b.dilation,
        )
        for b in branches
    )
    return tiles_of(transposed, reversed_taps, tile, True, True)


def build(sizes: Sizes, branches: tuple[Branch, ...], outputs: int, chunks: int, way: Way) -> Plan:
    """A plan on the host."""
    tiles = input_tiles(sizes, branches, way.config.BM)
    pitch, width = pitch_of(outputs), way.config.BN
    first_column = np.cumsum([0] + [b.taps * pitch for b in branches])
    columns, items, entries = [], [], 0
    bounds = [chunks * i // way.parts for i in range(way.parts + 1)]
    for number, walked in enumerate(tiles.tap_lists):
        of_list = [
            (b, co * branches[b].taps + tap, first_column[b] + tap * pitch + co)
            for b, tap, _, _ in walked
            for co in range(outputs)
        ]
        blocks = triton.cdiv(len(of_list), width)
        of_list += of_list[-1:] * (blocks * width - len(of_list))
        columns += of_list
        members = np.flatnonzero(tiles.lists == number).tolist()
        items += [
            (tile, entries + block * width, part, *bounds[part : part + 2])
            for tile, part, block in itertools.product(members, range(way.parts), range(blocks))
        ]
        entries += len(of_list)
    live = {(b, tap) for walked in tiles.tap_lists for b, tap, _, _ in walked}
    taps = []
    for b, tap in sorted(live):
        shifts = zip(
            divmod(tap, branches[b].kernel_size[1]),
            branches[b].dilation,
            branches[b].padding,
            strict=True,
        )
        taps.append((first_column[b] + tap * pitch, *(i * d - p for i, d, p in shifts)))
    taps += [(0, NEVER, 0)] * (-len(taps) % UNROLL.value)
    tables = ((items, 5), (tiles.pixels(), way.config.BM), (columns, 3), (taps, 3))
    return Plan(*pack([np.array(t, np.int32).reshape(-1, n) for t, n in tables]))


def candidates(device: torch.device, precision: str) -> list[configs.Config]:
    """The table's entries whose pixels are one of Triton's blocks."""
    row = configs.TABLE[configs.FORWARD, device_of(device).architecture, precision]
    return [config for config in row if config.BM != configs.WIDE]


@functools.lru_cache(maxsize=1024)
def estimate(launch: Launch) -> tuple[Way, float]:
    """The way that is estimated to be fastest, and the microseconds that it should take."""
    device, rates = launch.device, rates_of(launch.device)
    processors = device_of(device).multiprocessors
    best = None
    for config in candidates(device, launch.precision):
        tiles = input_tiles(launch.sizes, launch.branches, config.BM)
        chunks = triton.cdiv(launch.channels, config.BK)
        times = times_of(config, launch.precision, device)
        programs = sum(triton.cdiv(t * launch.outputs, config.BN) for t in tiles.taps.tolist())
        products = tiles.taps.sum().item() * config.BM * pitch_of(launch.outputs)
        for parts in (p for p in PARTS if p <= chunks):
            length = times.start + triton.cdiv(chunks, parts) * times.step + times.slot
            time = makespan([length] * (programs * parts), processors)
            stored = 4.0 * products * parts
            read = max(moved_time(stored, device), (stored - rates.held) / rates.memory)
            rounds = triton.cdiv(sum(b.taps for b in launch.branches), UNROLL.value) * parts
            time += 2 * rates.launch + max(read, rounds * WAIT)
            if best is None or time < best[1]:
                best = Way(config, parts), time
    return best[0], max(best[1], launch.bytes_time())


def run(
    launch: Launch,
    x: Tensor,
    weights: list[Tensor],
    out: Tensor,
    epilogue: Epilogue,
    way: Way | None = None,
    recording: Recording | None = None,
) -> Tensor:
    """Fills out; for the arguments see :func:`fastseg.kernels.conv.launch.run`.

    `way` is None for the one that `estimate` finds.
    """
    config, parts = way = way or estimate(launch)[0]
    sizes, branches, outputs = launch.sizes, launch.branches, launch.outputs
    chunks = triton.cdiv(launch.channels, config.BK)
    recording = recording or Recording(())
    plan = cache.get(launch.device, build, sizes, branches, outputs, chunks, way)
    plan = recording.plan(plan)
    pixels = sizes.batch * sizes.height * sizes.width
    out_pixels = sizes.batch * sizes.out_pixels
    stride = stride_of(branches, outputs)
    products = x.new_empty((parts, pixels, stride), dtype=torch.float32)
    products = recording.temporary(products)
    maps = Maps(
        *sizes[1:3], launch.channels, *sizes[3:], outputs, pixels, out_pixels, stride, parts
    )
    biases, scales, shifts = (
        None if v is None else [recording.derive(Tensor.contiguous, t) for t in v]
        for v in epilogue[:3]
    )
    operands = Operands(
        biases and biases[0], scales and scales[0], shifts and shifts[0], epilogue.residual
    )
    form = ProductForm(
        *config[:3],
        WHOLE=launch.channels % config.BK == 0,
        ALIGNED=all(rows_aligned(t, t.shape[1]) for t in (x, *weights)),
        PRECISION=input_precision(launch.precision),
    )
    with torch.cuda.device_of(x):
        if plan.items.shape[0]:
            recording.launch(
                tap_products_kernel,
                (plan.items.shape[0],),
                x,
                tuple(weights),
                products,
                plan.items,
                plan.pixels,
                plan.columns,
                maps,
                FORM=form,
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                enable_fp_fusion=True,
            )
        recording.launch(
            add_taps_kernel,
            (triton.cdiv(out_pixels, PIXELS),),
            products,
            out,
            operands,
            tuple(shifts[1:]) if shifts else (),
            plan.taps,
            plan.taps.shape[0],
            maps,
            PIXELS=PIXELS,
            CHANNELS=triton.next_power_of_2(pitch_of(outputs)),
            PITCH=pitch_of(outputs),
            ACTIVATION=epilogue.activation,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
