"""Launches of dense atrous convolutions: block shape, plan, workspace and kernels.

One launch computes one convolution, or several branches of one input: side by side as columns of
one output, or added up.
"""

from __future__ import annotations

import contextvars
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseg._core import prepared_calls
from fastseg.kernels.common import device_of, input_precision, precision_of
from fastseg.kernels.conv import configs
from fastseg.kernels.conv import plan as plans
from fastseg.kernels.conv.arguments import Columns, Form, Image, Tables
from fastseg.kernels.conv.cost import bytes_time, times_of
from fastseg.kernels.conv.forward import atrous_conv2d_kernel, reduce_kernel
from fastseg.kernels.conv.forward_wide import atrous_conv2d_wide_kernel
from fastseg.kernels.conv.geometry import Branch, Joined, Sizes
from fastseg.kernels.conv.layouts import rows_aligned
from fastseg.kernels.conv.plan_cache import cache
from fastseg.kernels.conv.rates import rates_of
from fastseg.kernels.conv.recording import Recording

REDUCED_ROWS = 16
"""Number of rows of a tile that one program of reduce_kernel adds up."""


class Epilogue(NamedTuple):
    """What follows the sums of all branches; a tensor (Co,) for each branch, or None.

    Attributes:
        biases: vectors that are added first.
        scales: vectors that are multiplied by.
        shifts: vectors that are added.
        residual: a tensor of the output's shape.
        activation: the activation's name, or "".
    """

    biases: Sequence[Tensor] | None = None
    scales: Sequence[Tensor] | None = None
    shifts: Sequence[Tensor] | None = None
    residual: Tensor | None = None
    activation: str = ""


class Launch(NamedTuple):
    """What a launch's plan and block shape depend on.

    Attributes:
        sizes: sizes of the input and of the output.
        branches: convolutions of one stride.
        channels: number of channels of the input.
        outputs: number of output channels of each branch.
        precision: a result of `precision_of`.
        device: the device of the tensors.
        summed: whether the branches add up into one output.
        transposed: whether the weight is read as the gradient of the input takes it, its taps
            reversed.
    """

    sizes: Sizes
    branches: tuple[Branch | Joined, ...]
    channels: int
    outputs: int
    precision: str
    device: torch.device
    summed: bool = False
    transposed: bool = False

    def problem(self, config: configs.Config) -> tuple:
        """What `plans.build` and `plans.estimate` take for a block shape."""
        cut = plans.Cut(
            config.BM,
            triton.cdiv(self.outputs, config.BN),
            triton.cdiv(self.channels, config.BK),
            device_of(self.device).multiprocessors,
            times_of(config, self.precision, self.device),
        )
        return self.sizes, self.branches, cut, self.summed, self.transposed

    def plan(self, config: configs.Config) -> plans.Plan:
        """The plan for a block shape, on the device."""
        return cache.get(self.device, plans.build, *self.problem(config))

    def bytes_time(self) -> float:
        """The microseconds that its tensors take from and to memory, if each moves once."""
        sizes = (self.channels, self.outputs, self.precision)
        return bytes_time(self.sizes, self.branches, *sizes, rates_of(self.device), self.summed)


def candidates(launch: Launch) -> tuple[configs.Config, ...]:
    """The table's entries for a launch; a loop for each summed branch takes registers."""
    return configs.candidates(
        launch.device, launch.precision, launch.outputs, wide=not launch.summed
    )


@functools.lru_cache(maxsize=1024)
def estimate(launch: Launch) -> tuple[configs.Config, float]:
    """The block shape that is estimated to be fastest, and the microseconds that it should take."""
    best, least = None, math.inf
    for config in candidates(launch):
        time = plans.estimate(*launch.problem(config), least)
        if time < least:
            best, least = config, time
    return best, max(least, launch.bytes_time())


def choose(launch: Launch) -> configs.Config:
    """The block shape of a launch: measured by `autotune`, else estimated."""
    return configs.tuned.get(launch) or estimate(launch)[0]


def kernel_of(config: configs.Config):
    """The kernel of a block shape; both take the same arguments."""
    return atrous_conv2d_wide_kernel if config.BM == configs.WIDE else atrous_conv2d_kernel


def run(
    launch: Launch,
    x: Tensor,
    weights: Sequence[Tensor],
    out: Tensor,
    epilogue: Epilogue,
    config: configs.Config | None = None,
    recording: Recording | None = None,
) -> Tensor:
    """Fills out, one column of `outputs` channels a branch.

    Args:
        launch: what the tensors agree with.
        x: (N, Ci, H, W), channels_last.
        weights: channels_last; for each branch (Co, Ci, kh, kw), of a transposed launch
            (Ci, Co, kh, kw).
        out: (N, C, h, w), channels_last, C = Co * branches, or Co where they are summed.
        epilogue: what follows the sums, the residual channels_last.
        config: a block shape, or None for the one that `choose` finds.
        recording: the recording that the tensors belong to, or None.

    Returns:
        out.
    """
    config = config or choose(launch)
    recording = recording or Recording(())
    plan = recording.plan(launch.plan(config))
    columns = Columns(launch.outputs, out.shape[1], triton.cdiv(launch.outputs, config.BN))
    workspace = None
    if plan.slots:
        shape = (plan.slots * columns.blocks, config.BM, config.BN)
        workspace = recording.temporary(x.new_empty(shape, dtype=torch.float32))
    vectors = [
        None if v is None else tuple(recording.derive(Tensor.contiguous, t) for t in v)
        for v in epilogue[:3]
    ]
    ending = (*vectors, epilogue.residual)
    form = Form(
        *config[:3],
        SUMMED=len(launch.branches) if launch.summed else 1,
        MIXED=plan.mixed,
        SPLIT=plan.slots > 0,
        WHOLE=launch.channels % config.BK == 0,
        ALIGNED=all(rows_aligned(t, t.shape[1]) for t in (x, *weights)),
        TRANSPOSED=launch.transposed,
        PRECISION=input_precision(launch.precision),
        ACTIVATION=epilogue.activation,
    )
    sizes, stride = launch.sizes, launch.branches[0].stride

    def kernels():
        recording.launch(
            kernel_of(config),
            (plan.items.shape[0] * columns.blocks,),
            x,
            tuple(weights),
            tuple(branch.taps for branch in launch.branches),
            out,
            workspace,
            *ending,
            Tables(plan.items, plan.pixels, plan.taps),
            Image(*sizes[1:3], launch.channels, *sizes[3:], *stride),
            columns,
            FORM=form,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
        if plan.slots:
            grid = (plan.reductions.shape[0] * columns.blocks, config.BM // REDUCED_ROWS)
            recording.launch(
                reduce_kernel,
                grid,
                workspace,
                out,
                *ending,
                plan.reductions,
                plan.pixels,
                columns,
                BM=form.BM,
                BN=form.BN,
                ROWS=REDUCED_ROWS,
                SUMMED=form.SUMMED,
                ACTIVATION=form.ACTIVATION,
                num_warps=4,
                enable_fp_fusion=True,
            )

    with_descriptor_memory(x, kernels)
    return out


def with_descriptor_memory(x: Tensor, launch_kernels: Callable[[], None]) -> None:
    """Launches kernels that make tensor descriptors, on x's device."""

    def memory(size: int, alignment: int, stream: int | None) -> Tensor:
        """The memory of all descriptors, 128 bytes for each of a program."""
        return torch.empty(size, dtype=torch.int8, device=x.device)

    def launch():
        triton.set_allocator(memory)
        launch_kernels()

    with torch.cuda.device_of(x):
        # In a context of its own: the allocator of the program around is the user's.
        contextvars.copy_context().run(launch)


def launch_of(x: Tensor, outputs: int, branches: Sequence[Branch], **options) -> Launch:
    """The launch for x (N, Ci, H, W); `options` are fields of `Launch`."""
    sizes = branches[0].sizes(x)
    precision = precision_of(x.dtype)
    return Launch(sizes, tuple(branches), x.shape[1], outputs, precision, x.device, **options)


def autotune(launch: Launch, x: Tensor, weights: Sequence[Tensor], out: Tensor) -> configs.Config:
    """Measures the table's entries for a launch on its device, and keeps the fastest.

    It is kept for this process, in `configs.tuned`; nothing calls this unless the user does.

    Args:
        launch: a result of `launch_of`.
        x: (N, Ci, H, W), channels_last.
        weights: what `run` takes.
        out: what `run` fills; it is overwritten.

    Returns:
        The fastest entry.
    """
    times = {
        c: configs.measure(lambda c=c: run(launch, x, weights, out, Epilogue(), c))
        for c in candidates(launch)
    }
    configs.tuned[launch] = min(times, key=times.__getitem__)
    prepared_calls.forget()
    return configs.tuned[launch]
