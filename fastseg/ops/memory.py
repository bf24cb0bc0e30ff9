"""Memory that fastseg keeps from one call to the next on the CPU."""

from __future__ import annotations

import sys

from fastseg._core import extension
from fastseg.ops.conv import prepared_weights


def empty_cache() -> None:
    """Returns the memory that fastseg keeps on the CPU for later calls to the system.

    That is memory of large outputs that were freed, for the next outputs of about their size: to
    get fresh pages from the system takes longer than many an op that fills them. It is at most
    1 GiB, and at most a sixteenth of the memory of the machine or the container; what nobody has
    wanted for a second the system may take back itself where it is short of memory. And it is
    weights in the form that a kernel wants, which otherwise go with the weights. Later calls make
    both anew.
    """
    prepared_weights.forget()
    if extension._cpu is not None:
        extension._cpu.fastseg_release_memory()
    host = sys.modules.get("fastseg._host")
    if host is not None:
        host.release_memory()
