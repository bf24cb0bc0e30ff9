"""The two kinds of process that a benchmark runs in on the CPU.

glibc returns every large buffer to the system when it is freed, and the page faults of the next one
(about 0.25 us for 4 KB) can outweigh an op that fills it. "untuned" is the process of a user who
has tuned nothing. In "reuse" freed pages are used again, like in a caching allocator, so that the
kernels themselves are compared. One cannot become the other, so that each is a process.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import subprocess
import sys
from pathlib import Path

ALLOCATORS = ("untuned", "reuse")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds --allocator."""
    parser.add_argument(
        "--allocator",
        choices=(*ALLOCATORS, "both"),
        default="both",
        help="on the CPU: leave the C library's as it is, or let it use freed pages again",
    )


def measures_here(options: argparse.Namespace) -> bool:
    """Prepares this process and returns True, or runs two others with the same arguments.

    Args:
        options: parsed options with `allocator`, and perhaps `device` and `csv`, a file's path,
            which gets another name in an untuned process.
    """
    if getattr(options, "device", "cpu") != "cpu":
        return True
    if options.allocator == "both":
        module = sys.modules["__main__"].__spec__.name
        for allocator in ALLOCATORS:
            print(f"# allocator: {allocator}", flush=True)
            command = [sys.executable, "-m", module, *sys.argv[1:], "--allocator", allocator]
            subprocess.run(command, check=True)
        return False
    if options.allocator == "reuse":
        _reuse_freed_pages()
    elif getattr(options, "csv", None):
        options.csv = Path(options.csv).with_stem(f"{Path(options.csv).stem}-untuned")
    return True


def _reuse_freed_pages() -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
