"""What tests that compile C++ share: a folder for each state of the sources, and the compiler."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def folder_for(name: str, options: Iterable[str], sources: Iterable[Path]) -> Path:
    """Where a build of these sources with these options lies, for this user.

    Args:
        name: of what is built.
        options: all that the result depends on beside the sources.
        sources: files that are compiled or included.
    """
    digest = hashlib.sha256("\0".join(options).encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    name = f"fastseg-{name}-{os.getuid()}-{digest.hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time builds in a folder; the others find what it has built."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list) -> None:
    """Runs a compiler.

    Raises:
        RuntimeError: it failed; with the command and what it said.
    """
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
