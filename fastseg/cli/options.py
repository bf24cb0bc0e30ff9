"""Command-line options that several commands have, and the files that hold them."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastseg.data.picture_format import PictureFormat
from fastseg.data.source import DataOptions
from fastseg.models import list_models
from fastseg.models.foreign import PACKAGES, is_foreign

MOST_THREADS = 1024
"""Greatest number of CPU threads, that of ``fastseg.train``; OpenMP dies of many more."""


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


def model_name(text: str) -> str:
    """Returns the name of a network of fastseg's, or of another package's.

    Raises:
        argparse.ArgumentTypeError: there is no such network.
    """
    if text in list_models() or is_foreign(text):
        return text
    names = ", ".join([*map(repr, list_models()), *(f"{package}:NAME" for package in PACKAGES)])
    raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {names})")


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


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where pictures and masks are."""
    group = parser.add_argument_group("data: either --data, or --images and --masks")
    group.add_argument(
        "--data",
        default="",
        metavar="DIR",
        help="folder of CamVid, PASCAL VOC, Cityscapes, ADE20K, COCO-Stuff, ISBI 2012 or DRIVE, or "
        "one with the folders images and masks",
    )
    group.add_argument("--images", default="", metavar="DIR", help="folder of pictures")
    group.add_argument(
        "--masks",
        default="",
        metavar="DIR",
        help="folder of their masks, which have the same names: palette, grey or coloured PNGs; "
        "255 does not count, 0 and 255 alone are two classes",
    )
    group.add_argument(
        "--classes",
        default="",
        metavar="FILE",
        help="names of the classes, one a line in the order of the ids, with colours for masks in "
        "colours (road 128 64 128); or JSON (default: what the data say)",
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave pictures that cannot be used out, rather than end",
    )


def add_channel_options(group: argparse._ActionsContainer) -> None:
    """Adds the options that say how many channels pictures have, and which of them are taken."""
    group.add_argument(
        "--channels",
        type=int,
        metavar="N",
        help="read pictures as they are stored, which have N channels: TIFFs of 8 or 16 bits or "
        "floats (default: as RGB of 8 bits)",
    )
    group.add_argument(
        "--bands",
        type=int,
        nargs="+",
        metavar="K",
        help="of the channels those that are taken, in this order, counted from 1 (default: all)",
    )


def picture_format(options: argparse.Namespace) -> PictureFormat | None:
    """Returns what :func:`add_channel_options` has read; None for pictures in RGB.

    Raises:
        ValueError: numbers out of range, or bands without the number of channels.
    """
    if options.channels is None:
        if options.bands:
            raise ValueError("--bands needs --channels, the number of them in a picture")
        return None
    return PictureFormat(options.channels, tuple(options.bands or ()))


def data_options(options: argparse.Namespace) -> DataOptions:
    """Returns what :func:`add_data_options` has read."""
    names = ("data", "images", "masks", "classes", "split", "skip_broken")
    return DataOptions(**{name: getattr(options, name) for name in names if name in options})


def add_output_option(parser: argparse.ArgumentParser, **settings: Any) -> None:
    """Adds ``-o``, ``--out`` or ``--output``, a path that becomes ``output``.

    Args:
        parser: the command's parser.
        **settings: further arguments of ``add_argument``, such as default and help.
    """
    parser.add_argument("-o", "--out", "--output", dest="output", type=Path, **settings)


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device`` and ``--threads``, which :func:`use_threads` takes."""
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")


def use_threads(threads: int | None) -> None:
    """Sets the number of CPU threads; 0 and None leave it to torch.

    Raises:
        ValueError: a negative number, or more threads than a process can have.
    """
    if threads is not None and not 0 <= threads <= MOST_THREADS:
        raise ValueError(
            f"--threads {threads}: at least 0, torch's choice, and at most {MOST_THREADS}"
        )
    if threads:
        torch.set_num_threads(threads)


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config``, which :func:`with_config` has read already."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML or JSON file of options, by their names without dashes; the command line wins",
    )


def with_config(
    arguments: Sequence[str], parser: argparse.ArgumentParser, positional: int = 0
) -> list[str]:
    """Returns a command line with the options of its ``--config`` file before its own.

    Args:
        arguments: the command line.
        parser: the command's parser.
        positional: where the options may begin, after the command's name.

    Raises:
        ValueError: the file holds something else than options of the command.
        FileNotFoundError: there is no such file.
    """
    finder = argparse.ArgumentParser("", add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        path = finder.parse_known_args(list(arguments))[0].config
    except argparse.ArgumentError:  # no file is named; the command's own parser says so
        path = None
    if path is None:
        return list(arguments)
    given = _as_arguments(Path(path), parser)
    if given:  # a list of values would go on with the command line's pictures
        given.append(f"--config={path}")
    return [*arguments[:positional], *given, *arguments[positional:]]


def _as_arguments(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Returns the options of a file as a command line."""
    actions = {
        text.lstrip("-").replace("-", "_"): action
        for action in parser._actions
        for text in (*action.option_strings, action.dest)
        if action.option_strings and action.dest not in ("help", "config")
    }
    words: list[str] = []
    for name, value in _read_config(path).items():
        action = actions.get(str(name).replace("-", "_"))
        if action is None:
            known = sorted({action.option_strings[-1][2:] for action in actions.values()})
            raise ValueError(f"{path}: there is no option {name!r}; there are {', '.join(known)}")
        flag = action.option_strings[-1]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise ValueError(f"{path}: {name} must be true or false, got {value!r}")
            words += [flag] * value
        elif isinstance(value, dict):
            words += [word for key, v in value.items() for word in (flag, f"{key}={v!r}")]
        elif isinstance(value, list) and isinstance(action, argparse._AppendAction):
            words += [f"{flag}={v}" for v in value]
        elif isinstance(value, list):
            words += [flag, *map(_as_text, value)]
        elif value is not None:
            words += [f"{flag}={value}"]
    return words


def _as_text(value: Any) -> str:
    """Returns a value as argparse reads it, which takes -1e-05 for a flag."""
    return np.format_float_positional(value) if isinstance(value, float) else str(value)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of options at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else _yaml(path, text)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: options are YAML or JSON, this is no text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold options and their values, got {type(found).__name__}")
    return found


def _yaml(path: Path, text: str) -> Any:
    """Reads YAML with PyYAML, imported here because it is optional."""
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise ValueError(f"{path}: needs PyYAML (pip install pyyaml), or give JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: is no YAML ({reason})") from None
