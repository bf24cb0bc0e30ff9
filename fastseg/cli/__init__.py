"""The ``fastseg`` command."""

from __future__ import annotations

import argparse

from fastseg.cli import crf, info, segment
from fastseg.cli.running import run_command
from fastseg.cli.warned import image_warnings_in_one_line

COMMANDS = (segment, crf, info)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status, which :func:`run_command` explains.

    Args:
        arguments: the command's arguments without the program's name; default: the process's.
    """
    return run_command("fastseg", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastseg", description="Kernels for semantic segmentation, and what is built on them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        summary = command.__doc__.partition("\n")[0]
        subparser = commands.add_parser(name, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    options = parser.parse_args(arguments)
    with image_warnings_in_one_line():
        return options.run(options)
