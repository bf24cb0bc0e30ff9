"""Which form computes a launch: the one whose modelled time is the shortest.

- LIVE_TAPS: the implicit product over live taps of :mod:`fastseg.kernels.conv.forward`;
- JOINED: the same of branches that add up, whose weights are copied into one: a kernel that walks
  one weight after the other has registers for smaller blocks alone;
- FEW_OUTPUTS: one product for all taps, then shifts (:mod:`fastseg.kernels.conv.few_outputs`);
- TORCH: torch's convolution, cuDNN's, one for each branch, which multiplies the dead taps too, and
  kernels for what follows.

The times are those of the GPU with the host ahead; each launch of a kernel counts the same in all
forms. **The model stands on no measurement**: :mod:`fastseg.kernels.conv.rates` says what it takes
for granted.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastseg.kernels.conv import configs, few_outputs
from fastseg.kernels.conv import launch as launches
from fastseg.kernels.conv.cost import ITEM_BYTES, cudnn_time, moved_time
from fastseg.kernels.conv.geometry import Joined
from fastseg.kernels.conv.launch import Launch
from fastseg.kernels.conv.layouts import channels_last
from fastseg.kernels.conv.rates import rates_of

LIVE_TAPS, JOINED = "live taps", "joined weights"
FEW_OUTPUTS, TORCH = "few outputs", "torch"

JOINING = 3
"""Launches that put weights into one and add up vectors."""

MARGIN = 0.9
"""How many times torch's modelled time ours may be for ours to run: below 1 as long as the model is
not calibrated, so that torch computes what skipping gains little in; infinity where torch never is
to be called."""


def torch_time(launch: Launch, followed: bool) -> float:
    """The microseconds of torch's convolutions and of the kernels that finish them.

    Args:
        launch: the convolutions.
        followed: whether something follows the sums: a vector, a residual, an activation.
    """
    sizes, branches, device = launch.sizes, launch.branches, launch.device
    out = sizes.batch * sizes.out_pixels * launch.outputs * ITEM_BYTES[launch.precision]
    pass_over = rates_of(device).launch + moved_time(2 * out, device)
    time = 0.0
    for branch in branches:
        time += cudnn_time(sizes, branch, launch.channels, launch.outputs, launch.precision, device)
    if launch.summed:  # each branch is added to the one before
        return time + (len(branches) if followed else len(branches) - 1) * pass_over
    time += len(branches) * pass_over if followed else 0.0
    if len(branches) > 1:  # side by side by one more kernel
        time += rates_of(device).launch + moved_time(2 * out * len(branches), device)
    return time


def joined(launch: Launch) -> Launch:
    """A summed launch as that of one convolution, which takes one weight."""
    return launch._replace(branches=(Joined(launch.branches),), summed=False)


def join_weights(*weights: Tensor) -> Tensor:
    """The weight (Co, Ci, taps, 1), channels_last, of a `joined` launch of (Co, Ci, kh, kw)."""
    rows = [channels_last(w).permute(0, 2, 3, 1).flatten(1, 2) for w in weights]
    return torch.cat(rows, 1).permute(0, 2, 1)[..., None]


def joined_time(launch: Launch) -> float:
    """The microseconds of a summed launch by `joined`, with the copies of weights and vectors."""
    rates = rates_of(launch.device)
    weights = launch.outputs * launch.channels * sum(b.taps for b in launch.branches)
    copied = 2 * weights * ITEM_BYTES[launch.precision] / rates.memory
    return launches.estimate(joined(launch))[1] + copied + JOINING * rates.launch


@functools.lru_cache(maxsize=1024)
def times(launch: Launch, followed: bool) -> dict[str, float]:
    """The modelled microseconds of each form that can compute a launch; see `torch_time`."""
    found = {LIVE_TAPS: launches.estimate(launch)[1]}
    if few_outputs.is_possible(launch):
        found[FEW_OUTPUTS] = few_outputs.estimate(launch)[1]
    if launch.summed and len(launch.branches) > 1:
        found[JOINED] = joined_time(launch)
    return found | {TORCH: torch_time(launch, followed)}


def choose_form(launch: Launch, followed: bool) -> str:
    """The form of a launch; see `torch_time`. A launch that is tuned runs as it was tuned."""
    if launch.channels == 0 or launch.outputs == 0 or 0 in launch.sizes:
        return TORCH
    if configs.tuned:
        if launch in configs.tuned:
            return LIVE_TAPS
        if launch.summed and joined(launch) in configs.tuned:
            return JOINED
    found = times(launch, followed)
    ours = min((form for form in found if form != TORCH), key=found.__getitem__)
    return ours if found[ours] <= MARGIN * found[TORCH] else TORCH
