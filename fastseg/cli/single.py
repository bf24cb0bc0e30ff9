"""Commands that start by a module of their own, with ``python -m``."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from fastseg.cli.options import with_config
from fastseg.cli.running import run_command
from fastseg.cli.warned import image_warnings_in_one_line


def describe(command: ModuleType, parser: argparse.ArgumentParser) -> None:
    """Gives a parser the arguments, description and examples of a command's module."""
    parser.description = command.__doc__
    parser.epilog = getattr(command, "EXAMPLES", None)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_arguments(parser)


def run_single(command: ModuleType, program: str, arguments: list[str] | None) -> int:
    """Runs a command by itself; returns :func:`run_command`'s exit status.

    Args:
        command: a module with ``add_arguments`` and ``run``.
        program: its name in the usage.
        arguments: the command line without the program; default: the process's.
    """

    def body() -> int:
        parser = argparse.ArgumentParser(prog=program, allow_abbrev=False)
        describe(command, parser)
        given = sys.argv[1:] if arguments is None else arguments
        options = parser.parse_args(with_config(given, parser))
        with image_warnings_in_one_line():
            return command.run(options)

    return run_command("error", body)
