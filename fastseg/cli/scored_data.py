"""The pictures with masks that a command scores, and the option that divides them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from fastseg.cli.options import data_options
from fastseg.data.classes import Classes
from fastseg.data.layouts import layout_of
from fastseg.data.picture_format import PictureFormat
from fastseg.data.source import DataOptions, DataSource, open_data
from fastseg.data.splits import PARTS, read_shares, read_split


def add_split_option(parser: argparse._ActionsContainer) -> None:
    """Adds ``--split``, which :func:`scored_data` reads."""
    parser.add_argument(
        "--split",
        default="",
        help="val (default of --data), train or test of --data; a file, whose validation pictures "
        "are scored, such as run/split.json, or FILE:test (default: all pictures)",
    )


def scored_data(
    options: argparse.Namespace, known: Classes | None, form: PictureFormat | None = None
) -> tuple[DataSource, str]:
    """Returns the data, and the part of them that is scored; prints what was decided for the user.

    Args:
        options: what ``add_data_options`` and :func:`add_split_option` have read.
        known: classes of the weights, for data that do not say; None without weights.
        form: how the weights' pictures are read as they are stored; None is as RGB of 8 bits.

    Raises:
        FileNotFoundError: a folder, file or mask is missing.
        ValueError: options or pictures that cannot be used; classes that are not the weights';
            pictures that would be chosen at random, as ``crf --tune`` alone may.
    """
    told: DataOptions = replace(data_options(options), form=form)
    told.check()
    own = layout_of(told.data).parts(Path(told.data)) if told.data else {}
    split, part = options.split, "all"
    if split in PARTS:
        if not told.data:
            raise ValueError(f"--split {split} needs --data with such a part, or a file of names")
        told, part = replace(told, split=""), split
    elif split:
        name, _, last = split.rpartition(":")
        split, part = (name, last) if name and last in PARTS else (split, "val")
        if split.endswith((".txt", ".json")):
            read_split(split)
        told = replace(told, split=split)
    elif told.data and "all" not in own:
        part = "val"
    drawn = not told.split and part == "val" and part not in own
    if "tune" not in options and (drawn or read_shares(told.split) is not None):
        raise ValueError(
            f"--split {split or part}: chooses pictures at random, perhaps some that were trained "
            "on; expected a part that --data has, or a file of names, such as the run's split.json"
        )
    source = open_data(told, (part,), known=known)
    for note in source.notes:
        print(f"fastseg: {note}", file=sys.stderr)
    if known is not None and list(source.classes.names) != list(known.names):
        raise ValueError(
            f"{options.weights} knows {len(known)} classes, {', '.join(known.names[:3])}, ...: "
            f"other ones than the {len(source.classes)} of the data, "
            f"{', '.join(source.classes.names[:3])}, ..."
        )
    return source, part
