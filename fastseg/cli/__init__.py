"""The ``fastseg`` command."""

from __future__ import annotations

import argparse
import sys

import torch

from fastseg.checkpoint import CheckpointError
from fastseg.cli import crf, info, segment
from fastseg.cli.warned import image_warnings_in_one_line

COMMANDS = (segment, crf, info)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; errors that a user can mend are one line and exit status 2.

    Args:
        arguments: without the program's name; default those of the process.
    """
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
    try:
        with image_warnings_in_one_line():
            return options.run(options)
    except (OSError, ValueError, CheckpointError, torch.OutOfMemoryError) as error:
        print(f"fastseg: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastseg: interrupted", file=sys.stderr)
        return 130
