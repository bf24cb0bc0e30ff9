"""Execution of a command: an error that a user can cause is one line, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch

from fastseg.zoo.checkpoint import CheckpointError

UNFINISHED = 1
"""Exit status where the output has not reached its reader."""

UNUSABLE = 2
"""Exit status where an input cannot be used."""

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM."""

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
"""Texts in the errors of torch's allocator on the CPU, which have no class of their own."""

MENDABLE = (FloatingPointError, ImportError, MemoryError, OSError, RuntimeError, ValueError)
"""Classes of errors that a user can mend; only a few RuntimeErrors are."""


def run_command(prefix: str, body: Callable[[], int]) -> int:
    """Runs a command's body, and says in one line what a user can mend.

    Args:
        prefix: the text with which the line begins.
        body: parses the arguments, does the work and returns the exit status.

    Returns:
        The body's status; 1 if its output cannot be written, such as to a full disk or a reader
        that has left; 2 if an input cannot be used; 130 after Ctrl-C.

    Raises:
        SystemExit: argparse has printed usage or help.
        Exception: fastseg has a defect.
    """
    _open_streams()
    try:
        status = body()
    except SystemExit:
        if _finish_output():
            raise
        return UNFINISHED
    except KeyboardInterrupt:
        _say("fastseg: interrupted")
        return INTERRUPTED
    except MENDABLE as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            _give_up_output(error)  # only the streams have no names
            return UNFINISHED
        if isinstance(error, RuntimeError) and not _is_mendable(error):
            raise
        _say(f"{prefix}: {_reason(error)}")
        status = UNUSABLE
    return status if _finish_output() else UNFINISHED


def _is_mendable(error: RuntimeError) -> bool:
    """Whether an error is no defect of fastseg."""
    known = (CheckpointError, torch.OutOfMemoryError)
    return isinstance(error, known) or any(text in str(error) for text in OUT_OF_MEMORY)


def _reason(error: Exception) -> str:
    """Returns an error's first line; for a system error the file and its problem."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or any(s in text for s in OUT_OF_MEMORY):
        return f"not enough memory ({text})" if text else "not enough memory"
    return text


def _open_streams() -> None:
    """Opens streams that a shell closed, and lets them write names in any encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the whole process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _finish_output() -> bool:
    """Writes the rest of the buffer; returns whether all of the output was written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _give_up_output(error)
        return False
    return True


def _give_up_output(error: OSError) -> None:
    """Says why the output cannot be written, unless its reader has left, such as ``| head``."""
    if not isinstance(error, BrokenPipeError):
        _say(f"fastseg: the output cannot be written ({error.strerror})")
    # Otherwise Python would write the rest as it ends, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # there is nowhere left to say it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
