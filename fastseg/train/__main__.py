"""The command ``python -m fastseg.train``, which is ``fastseg train``."""

from __future__ import annotations

from fastseg.cli import train
from fastseg.cli.single import run_single
from fastseg.train.processes import end


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns 0, or the exit status of :func:`run_command`."""
    return run_single(train, "python -m fastseg.train", arguments)


if __name__ == "__main__":
    end(main())
