"""The memory that fastseg keeps on the CPU from one call to the next."""

from __future__ import annotations

import sys

from fastseg._core import extension
from fastseg.ops.conv import prepared_weights


def empty_cache() -> None:
    """Returns the memory that fastseg keeps on the CPU for later calls to the system.

    It keeps the memory of large outputs that were freed, for the next outputs of about their size:
    getting fresh pages from the system takes longer than many an op that fills them. This is at
    most 1 GiB, and at most a sixteenth of the memory of the machine or the container. Where the
    system is short of memory, it may itself take back what has not been used for a second. fastseg
    also keeps weights in the form that a kernel needs, as long as the weights live. Later calls
    make both anew.
    """
    prepared_weights.forget()
    if extension._cpu is not None:
        extension._cpu.fastseg_release_memory()
    host = sys.modules.get("fastseg._host")
    if host is not None:
        host.release_memory()
