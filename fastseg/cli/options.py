"""Command-line options that several commands have."""

from __future__ import annotations

import argparse
import ast
from typing import Any

import torch


def model_option(text: str) -> tuple[str, Any]:
    """Returns name and value of ``--option NAME=VALUE``; a value is a Python literal or a string.

    Raises:
        argparse.ArgumentTypeError: the text does not have this form.
    """
    name, equals, value = text.partition("=")
    if not name.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as output_stride=8")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--option``, whose values are pairs in ``options``."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=model_option,
        metavar="NAME=VALUE",
        dest="options",
        help="argument of the model's builder, such as output_stride=8; may be given again",
    )


def device(name: str) -> torch.device:
    """Returns the device of ``--device NAME``.

    Raises:
        ValueError: the name is not that of a device that torch sees.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: not a device; give cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device
