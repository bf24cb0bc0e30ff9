"""The command ``fastseg`` as ``python -m fastseg``, and as pip installs it."""

from typing import NoReturn

from fastseg.cli import main
from fastseg.train.processes import end


def run() -> NoReturn:
    """Runs the process's command line, and ends the process with its exit status."""
    end(main())


if __name__ == "__main__":
    run()
