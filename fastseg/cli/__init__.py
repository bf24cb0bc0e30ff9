"""The ``fastseg`` command."""

from __future__ import annotations

import argparse
import sys

from fastseg._core.version import __version__
from fastseg.cli import bench, crf, data, demo, evaluate, export, info, optimize, segment, train
from fastseg.cli.options import with_config
from fastseg.cli.running import run_command
from fastseg.cli.single import describe
from fastseg.cli.warned import image_warnings_in_one_line

COMMANDS = (segment, crf, train, evaluate, optimize, export, bench, data, demo, info)

EXAMPLES = """from pictures and masks to a network that segments:
  fastseg data check --images img --masks mask --classes names.txt
  fastseg train --images img --masks mask --classes names.txt --model unet --epochs 30 --out run
  fastseg evaluate --weights run/best.pt --images img --masks mask --split run/split.json
  fastseg segment img --weights run/best.pt -o out

fastseg COMMAND --help explains a command. The exit status is 0; 1 where a part of the work is not
done, such as a picture that cannot be read; 2 where an input cannot be used; 130 after Ctrl-C."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status, which :func:`run_command` explains.

    Args:
        arguments: the command's arguments without the program's name; default: the process's.
    """
    return run_command("fastseg", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="fastseg",
        description="Kernels for semantic segmentation, and what is built on them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fastseg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    subparsers = {}
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        summary = (command.__doc__ or "").partition("\n")[0]  # python -OO leaves no docstrings
        subparsers[name] = subparser = commands.add_parser(name, help=summary, allow_abbrev=False)
        describe(command, subparser)
        subparser.set_defaults(run=command.run)
    if given and given[0] in subparsers:
        given = with_config(given, subparsers[given[0]], positional=1)
    options = parser.parse_args(given)
    with image_warnings_in_one_line():
        return options.run(options)
