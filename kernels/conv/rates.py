"""What a GPU can do, as far as plans and choices of convolutions ask for it: one row a device.

**No row was measured by us.** Each figure is a data sheet's peak times a factor, or an estimate, as
`ESTIMATED` says; the choice between these kernels and cuDNN stands on them, so a first run on a
device should put a measured row into `CALIBRATED` (`benchmarks/gpu.sh calibrate` measures
`product`, `l2`, `memory` and `launch`, and `benchmarks/atrous_conv2d_gpu.py` cuDNN's times).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastseg.kernels.common import device_of


class Rates(NamedTuple):
    """A GPU's rates; those of a multiprocessor hold while all of them work.

    Attributes:
        product: FLOPs a microsecond of one multiprocessor's matrix units, in 16 bits.
        plain: FLOPs a microsecond of one multiprocessor in float32, without matrix units.
        l2: bytes a microsecond between one multiprocessor and the second-level cache.
        memory: bytes a microsecond of a copy, of the whole GPU.
        held: bytes of the second-level cache that a call can count on.
        loop: the share of `product` that these kernels' loops reach while no operand is late.
        cudnn: the share of `product`, or of `plain`, that cuDNN's convolutions reach in full tiles.
        start: microseconds from a program's begin to its first product.
        launch: microseconds that a kernel's launch adds to its work.
    """

    product: float
    plain: float
    l2: float
    memory: float
    held: float
    loop: float
    cudnn: float
    start: float
    launch: float


LOOP = 0.9
"""What barriers and the filling of a pipeline leave: an estimate."""

CUDNN = 0.75
"""cuDNN's convolutions in bfloat16 are expected at 60 to 75 % of a large product: its upper end, in
cuDNN's favour."""

START = 1.5
"""Two loads that wait for each other, a descriptor and the first copies: an estimate."""

LAUNCH = 2.0
"""From one kernel's last program to the next one's first: an estimate."""


def _rates(
    processors: int, product: float, plain: float, l2: float, memory: float, held: float
) -> Rates:
    """Rates from those of a whole GPU in TFLOP/s, TB/s and MB."""
    each = (1e6 * rate / processors for rate in (product, plain, l2))
    return Rates(*each, 1e6 * memory, 1e6 * held, LOOP, CUDNN, START, LAUNCH)


ESTIMATED = {
    # 0.8 of the data sheet's peak of dense products in bfloat16, as large products of random
    # numbers leave of it where power limits the clock; 0.8 to 0.9 of its memory; its peak of
    # float32. The second-level cache's are estimates, of H200 and H100 those of
    # benchmarks/gpu_model/devices.py.
    "H200": _rates(132, 790, 67, 6.5, 4.3, 40),
    "H100": _rates(132, 790, 67, 6.0, 2.9, 34),
    "A100": _rates(108, 250, 19.5, 4.4, 1.6, 20),
    "B200": _rates(148, 1800, 75, 9.6, 7.2, 80),
}
"""By a part of the device's name."""

OF_ARCHITECTURE = {"sm_80": "A100", "sm_90": "H100", "sm_100": "B200"}
"""The row that other devices take: their multiprocessors are as fast, or the estimate is off."""

CALIBRATED: dict[str, Rates] = {}
"""Measured rows by the device's whole name, which come first. There are none yet."""


def rates_of(device: torch.device) -> Rates:
    """The row of a device."""
    known = device_of(device)
    if known.name in CALIBRATED:
        return CALIBRATED[known.name]
    for name, rates in ESTIMATED.items():
        if name in known.name:
            return rates
    return ESTIMATED[OF_ARCHITECTURE[known.architecture]]
