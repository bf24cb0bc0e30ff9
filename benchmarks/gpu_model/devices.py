"""Constants of the model, none of them measured by us: a first run on a device corrects them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A GPU, as the model knows it.

    Attributes:
        name: of the product.
        multiprocessors: with four schedulers each.
        hertz: cycles of a multiprocessor in a second, under load.
        dram_bandwidth: bytes a second that a copy moves.
        l2_bandwidth: bytes a second between the second-level cache and the multiprocessors.
        l2_bytes: of that cache that a call can count on.
        launch_seconds: what a launch adds to its work: from one kernel's last block to the next
            one's first, and the time in which it has too few bytes in flight.
    """

    name: str
    multiprocessors: int
    hertz: float
    dram_bandwidth: float
    l2_bandwidth: float
    l2_bytes: float
    launch_seconds: float


H200 = Device("H200", 132, 1.75e9, 4.3e12, 6.5e12, 40e6, 2.0e-6)
H100 = Device("H100", 132, 1.75e9, 2.9e12, 6.0e12, 34e6, 2.0e-6)
DEVICES = (H200, H100)
