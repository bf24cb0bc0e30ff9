"""Memory that fastseg keeps from one call to the next on the CPU."""

from __future__ import annotations

import sys

from fastseg import _extension, _prepared_weights


def empty_cache() -> None:
    """Returns the memory that fastseg keeps on the CPU for later calls to the system.

    That is memory of large outputs that were freed, at most 1 GiB and a sixteenth of the machine's
    memory, for the next outputs of about their size, since to get fresh pages from the system takes
    longer than many an op that fills them (the system may take it back itself when it is short of
    memory); and weights in the form that a kernel wants, which otherwise go with the weights. Later
    calls make both anew.
    """
    _prepared_weights.forget()
    if _extension._cpu is not None:
        _extension._cpu.fastseg_release_memory()
    host = sys.modules.get("fastseg._host")
    if host is not None:
        host.release_memory()
