"""Writing of files so that none is ever half written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fastseg._core.startup import UNFINISHED_FILES

PREFIX = ".fastseg."
"""Beginning of a temporary file's name: with the file's own it could be too long for a name."""


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces ``path`` in one step when the block ends.

    The bytes are written to a temporary file in the same folder and reach the disk first, so that a
    reader or a crash sees the old file or the new one. If the block raises, the old file stays. A
    link stays, and the file that it leads to is replaced; a file keeps its permissions. Where
    ``path`` is a pipe or a device, the bytes are written to it as they come.

    Args:
        path: the file to replace or create; its folder must exist.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        with _naming(path), open(path, "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    with _naming(path):
        descriptor, temporary = tempfile.mkstemp(prefix=PREFIX, dir=target.parent)
        UNFINISHED_FILES.add(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes private files.
            os.chmod(temporary, _mode_of_new_files() if mode is None else stat.S_IMODE(mode))
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        finally:
            UNFINISHED_FILES.discard(temporary)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _mode(path: str | Path) -> int | None:
    """Returns the mode of what a path leads to, or None if there is nothing yet."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _mode_of_new_files() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Makes system errors in writing name the file, which they do not name or by another name."""
    try:
        yield
    except OSError as error:
        told = os.path.basename(str(error.filename))
        if error.errno and (error.filename is None or told.startswith(PREFIX)):
            error.filename, error.filename2 = str(path), None
        raise
