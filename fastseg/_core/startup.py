"""Handling of Ctrl-C and SIGTERM in a command of fastseg, from its first import to its end.

Python's own handler raises an exception wherever the program is. In the middle of torch's imports,
which take seconds, or as Python ends, it is printed with its traceback. A command ends at once
instead, with one line, and removes the temporary files of :mod:`fastseg._core.atomic`. A program
that imports fastseg keeps its own handlers.

This module is imported before all others of fastseg, and imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

COMMANDS = ("fastseg", "fastseg.train", "fastseg.train.evaluate", "fastseg.evaluate")
"""Names of the commands and of the modules that ``python -m`` runs as commands."""

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM."""

UNFINISHED_FILES: set[str] = set()
"""Paths of temporary files to remove."""


def is_a_command() -> bool:
    """Whether this process runs one of the commands, not a program that imports fastseg."""
    first, arguments = sys.argv[0], sys.argv[1:]
    if first == "-m":  # Python is still looking for the module, whose name precedes the arguments
        before = sys.orig_argv[: len(sys.orig_argv) - len(arguments)]
        return before[-1].removeprefix("-m") in COMMANDS
    return os.path.basename(first) == "fastseg"


def end_on_signals() -> None:
    """Makes this process end at Ctrl-C and SIGTERM, unless it ignores or handles them itself."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is usual:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    for path in tuple(UNFINISHED_FILES):
        with contextlib.suppress(OSError):
            os.unlink(path)
    try:
        os.write(2, b"fastseg: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


if is_a_command():
    end_on_signals()
