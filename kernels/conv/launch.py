"""Launches of atrous convolutions: block shape, plan, workspace and kernels.

One launch computes one convolution, or several branches of one input: side by side as columns of
one output, or added up.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseg._core.float32_precision import tf32_in_convolutions
from fastseg.kernels.conv import configs as configs
from fastseg.kernels.conv import plan as plans
from fastseg.kernels.conv.forward import atrous_conv2d_kernel, reduce_kernel
from fastseg.kernels.conv.tiles import Branch, Sizes

REDUCED_ROWS = 16
"""Rows of a tile that one program of reduce_kernel adds up."""

PROCESSORS_OF_NO_GPU = 8
"""Of the interpreter's, so that small launches are split there too."""


class Epilogue(NamedTuple):
    """What follows the sums; a tensor (Co,) for each branch, or None.

    Attributes:
        biases: added first.
        scales: multiplied by.
        shifts: added.
        residual: of the output's shape.
        activation: its name, or "".
    """

    biases: Sequence[Tensor] | None = None
    scales: Sequence[Tensor] | None = None
    shifts: Sequence[Tensor] | None = None
    residual: Tensor | None = None
    activation: str = ""


class Launch(NamedTuple):
    """What a launch's plan and block shape depend on.

    Attributes:
        sizes: of input and output.
        branches: of one stride.
        channels: of the input.
        outputs: of each branch.
        precision: "16" for 16-bit tensors, "tf32" or "tf32x3" for float32.
        device: of the tensors.
        summed: the branches add up into one output.
        transposed: the weight is read as the gradient of the input takes it, its taps reversed.
    """

    sizes: Sizes
    branches: tuple[Branch, ...]
    channels: int
    outputs: int
    precision: str
    device: torch.device
    summed: bool = False
    transposed: bool = False

    def cut(self, config: configs.Config) -> plans.Cut:
        """How a block shape cuts it."""
        return plans.Cut(
            config.BM,
            triton.cdiv(self.outputs, config.BN),
            triton.cdiv(self.channels, config.BK),
            config.step(self.precision),
            processors(self.device),
        )

    def plan(self, config: configs.Config) -> plans.Plan:
        """On the device."""
        return plans.cache.get(
            self.sizes, self.branches, self.cut(config), self.device, self.summed, self.transposed
        )


@functools.cache
def processors(device: torch.device) -> int:
    """The GPU's multiprocessors."""
    if device.type != "cuda":
        return PROCESSORS_OF_NO_GPU
    return torch.cuda.get_device_properties(device).multi_processor_count


def candidates(launch: Launch) -> tuple[configs.Config, ...]:
    """The table's entries for a launch; a loop for each summed branch takes registers."""
    return configs.candidates(
        launch.device, launch.precision, launch.outputs, wide=not launch.summed
    )


@functools.lru_cache(maxsize=1024)
def estimate(launch: Launch) -> tuple[configs.Config, float]:
    """The block shape that is estimated to be fastest, and its share of dense multiplications."""
    best = None
    for config in candidates(launch):
        time, share = plans.estimate(
            launch.sizes, launch.branches, launch.cut(config), launch.summed, launch.transposed
        )
        # Channels that fill up a chunk are multiplied as well.
        share *= triton.cdiv(launch.channels, config.BK) * config.BK / launch.channels
        if best is None or time < best[0]:
            best = time, config, share
    return best[1:]


def choose(launch: Launch) -> configs.Config:
    """The block shape of a launch: measured by `autotune`, else estimated."""
    return configs.tuned.get(launch) or estimate(launch)[0]


def precision_of(dtype: torch.dtype) -> str:
    """Of products: float32 takes one TF32 term where torch's own convolution may, else three."""
    if dtype != torch.float32:
        return "16"
    return "tf32" if tf32_in_convolutions() else "tf32x3"


def input_precision(precision: str) -> str:
    """For tl.dot; 16-bit products ignore it."""
    return "tf32" if precision == "16" else precision


def run(
    launch: Launch,
    x: Tensor,
    weights: Sequence[Tensor],
    out: Tensor,
    epilogue: Epilogue,
    config: configs.Config | None = None,
) -> Tensor:
    """Fills out, one column of `outputs` channels a branch.

    Args:
        launch: what the tensors agree with.
        x: (N, Ci, H, W), channels_last.
        weights: for each branch (Co, Ci, kh, kw); of a transposed launch (Ci, Co, kh, kw).
            channels_last.
        out: (N, C, h, w), channels_last, C = Co * branches, or Co where they are summed.
        epilogue: the residual channels_last.
        config: a block shape; None: the one that `choose` finds.

    Returns:
        out.
    """
    config = config or choose(launch)
    plan = launch.plan(config)
    summed = len(launch.branches) if launch.summed else 1
    columns = triton.cdiv(launch.outputs, config.BN)
    workspace = None
    if plan.slots:
        shape = (plan.slots * columns, config.BM, config.BN)
        workspace = x.new_empty(shape, dtype=torch.float32)
    vectors = [None if v is None else tuple(t.contiguous() for t in v) for v in epilogue[:3]]
    ending = (*vectors, epilogue.residual)
    stride = launch.branches[0].stride
    kernel_taps = tuple(b.kernel_size[0] * b.kernel_size[1] for b in launch.branches)
    aligned = all(rows_aligned(t, t.shape[1]) for t in (x, *weights))
    common = {"BM": config.BM, "BN": config.BN, "SUMMED": summed, "ACTIVATION": epilogue.activation}

    def kernels():
        atrous_conv2d_kernel[(plan.items.shape[0] * columns,)](
            x, tuple(weights), out, workspace, *ending, plan.items, plan.pixels, plan.taps,
            *launch.sizes[1:], *stride, launch.channels, launch.outputs, kernel_taps,
            out.shape[1], columns, BK=config.BK, MIXED=plan.mixed, SPLIT=plan.slots > 0,
            WHOLE=launch.channels % config.BK == 0, ALIGNED=aligned,
            TRANSPOSED=launch.transposed, PRECISION=input_precision(launch.precision), **common,
            num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        if plan.slots:
            grid = (plan.reductions.shape[0] * columns, config.BM // REDUCED_ROWS)
            reduce_kernel[grid](
                workspace, out, *ending, plan.reductions, plan.pixels, launch.outputs,
                out.shape[1], columns, ROWS=REDUCED_ROWS, **common, num_warps=4,
                enable_fp_fusion=True,
            )  # fmt: skip

    with_descriptor_memory(x, kernels)
    return out


def with_descriptor_memory(x: Tensor, launch_kernels: Callable[[], None]) -> None:
    """Launches kernels that make tensor descriptors, on x's device."""

    def launch():
        triton.set_allocator(_descriptor_memory)
        launch_kernels()

    with torch.cuda.device_of(x):
        # In a context of its own: the allocator of the program around is the user's.
        contextvars.copy_context().run(launch)


def _descriptor_memory(size: int, alignment: int, stream: int | None) -> Tensor:
    """128 bytes for each descriptor of a program."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def rows_aligned(t: Tensor, row: int) -> bool:
    """Whether t's rows of so many elements begin at multiples of 16 bytes."""
    return t.data_ptr() % 16 == 0 and row * t.element_size() % 16 == 0


def channels_last(t: Tensor) -> Tensor:
    """A copy only if need be."""
    return t.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Of `like`'s dtype and device."""
    return torch.empty(
        tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def in_layout_of(x: Tensor, out: Tensor) -> Tensor:
    """out, channels_last if x is, else contiguous."""
    return out.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def output_size(size: Sequence[int], branch: Branch) -> tuple[int, ...]:
    """(h, w) of a convolution of (H, W)."""
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, *branch, strict=True)
    )


def launch_of(x: Tensor, outputs: int, branches: Sequence[Branch], **options) -> Launch:
    """For x (N, Ci, H, W)."""
    size = output_size(x.shape[2:], branches[0])
    sizes = Sizes(x.shape[0], *x.shape[2:], *size)
    precision = precision_of(x.dtype)
    return Launch(sizes, tuple(branches), x.shape[1], outputs, precision, x.device, **options)


def autotune(launch: Launch, x: Tensor, weights: Sequence[Tensor], out: Tensor) -> configs.Config:
    """Measures the table's entries for a launch on its device, and keeps the fastest.

    For this process, in `configs.tuned`; nothing calls it unless the user does.

    Args:
        launch: from `launch_of`.
        x: see `run`, like weights and out, which is overwritten.
        weights: see x.
        out: see x.

    Returns:
        The fastest.
    """
    times = {
        c: configs.measure(lambda c=c: run(launch, x, weights, out, Epilogue(), c))
        for c in candidates(launch)
    }
    configs.tuned[launch] = min(times, key=times.__getitem__)
    return configs.tuned[launch]
