"""The record of a folder of results: which of its files were made, and by which settings."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from fastseg._core.atomic import atomic_write

RECORD = "segment.json"
"""Name of the record in the folder."""


class Record(NamedTuple):
    """What was made in a folder.

    Attributes:
        settings: what the last results depend on.
        files: paths in the folder that were made by these settings, or were going to be.
        others: paths in the folder that were made by other settings.
    """

    settings: Any
    files: Set[str] = frozenset()
    others: Set[str] = frozenset()

    @property
    def known(self) -> Set[str]:
        """All files that are the command's, which it may replace."""
        return self.files | self.others

    @classmethod
    def read(cls, folder: Path, files: Iterable[str]) -> Record:
        """Returns the record of a folder; one without results has an empty one.

        Args:
            folder: the folder.
            files: paths in it that are the command's where the record does not tell: that of
                earlier versions held the settings alone.
        """
        path = folder / RECORD
        if not path.exists():
            return cls(None)
        try:
            told = json.loads(path.read_text())
            return cls(told["settings"], frozenset(told["files"]), frozenset(told["others"]))
        except (KeyError, TypeError, ValueError):
            return cls(None, others=frozenset(files))

    def of(self, settings: Any) -> Record:
        """Returns the record of a run by these settings, or other ones."""
        if self.settings == settings:
            return self
        return Record(settings, others=self.known)

    def without(self, files: Set[str]) -> Record:
        """Returns the record with files that are going to be made anew."""
        return self._replace(files=self.files - files, others=self.others | files)

    def with_made(self, files: Set[str]) -> Record:
        """Returns the record with files that this run makes."""
        return self._replace(files=self.files | files, others=self.others - files)

    def write(self, folder: Path) -> None:
        """Writes the record into its folder."""
        told = {"settings": self.settings, "files": sorted(self.files)}
        told["others"] = sorted(self.others)
        with atomic_write(folder / RECORD) as file:
            file.write(json.dumps(told, indent=1).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs into a folder from writing its record until the block ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network drives have no locks on folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def results_in(folder: Path) -> set[Path]:
    """Returns the resolved paths of the files in a folder that are the command's own results."""
    return {(folder / name).resolve() for name in Record.read(folder, ()).known}
