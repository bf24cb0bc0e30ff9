"""The command ``python -m fastseg.train.evaluate``, which is ``fastseg evaluate``."""

from __future__ import annotations

import sys

from fastseg.cli import evaluate as command
from fastseg.cli.single import run_single
from fastseg.train.evaluation import evaluate, scores

__all__ = ["evaluate", "main", "scores"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and prints a table; returns :func:`run_command`'s exit status."""
    return run_single(command, "python -m fastseg.train.evaluate", arguments)


if __name__ == "__main__":
    sys.exit(main())
