"""Look at pictures and masks before training: classes, sizes, broken files, a contact sheet."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fastseg.cli.options import (
    add_channel_options,
    add_config_option,
    add_data_options,
    add_output_option,
    data_options,
    picture_format,
)
from fastseg.cli.running import UNFINISHED
from fastseg.data.channel_image import preview
from fastseg.data.folder import PictureFolder
from fastseg.data.image import check_writable, write_png
from fastseg.data.pairs import Pair
from fastseg.data.picture_format import Kind, stored_kind
from fastseg.data.sheets import contact_sheet
from fastseg.data.source import DataSource, open_data
from fastseg.data.survey import class_counts
from fastseg.data.transforms import EvalTransform

EXAMPLES = """examples:
  fastseg data check --images img --masks mask --classes names.txt
  fastseg data check --data VOC2012 -o sheet.png
"""

SHOWN_SIZES = 8
SHOWN_NAMES = 8
"""Number of pictures that are named because they are stored in another way than most."""

SHEET = 24
"""Number of pictures on the contact sheet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg data`."""
    parser.add_argument("action", choices=("check",), help="check: read everything and report")
    add_data_options(parser)
    add_channel_options(parser)
    add_output_option(
        parser,
        default=Path("contact_sheet.png"),
        metavar="PNG",
        help="picture of the pictures with their masks (default: %(default)s)",
    )
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Prints what a data set holds and draws it; returns 1 if files cannot be used."""
    check_writable(options.output)
    form = picture_format(options)
    wanted = replace(data_options(options), skip_broken=True, form=form)
    source = open_data(wanted, ("all",), progress=sys.stderr.isatty())
    print("\n".join(report(source)))
    pairs = source.parts["all"]
    shown = np.linspace(0, len(pairs) - 1, min(SHEET, len(pairs))).astype(int).tolist()
    dataset = PictureFolder(
        [pairs[k] for k in shown], source.classes, EvalTransform(1), form=source.form
    )
    items = []
    for k, pair in enumerate(dataset.pairs):
        image, label = dataset.load(k)
        items.append((pair.name, preview(image), np.asarray(label)))
    write_png(contact_sheet(items, source.classes), options.output)
    print(f"contact sheet in {options.output}")
    for problem in source.broken.values():
        print(f"fastseg: {problem}", file=sys.stderr)
    return UNFINISHED if source.broken else 0


def report(source: DataSource) -> list[str]:
    """Returns lines for a terminal: the pictures, how they are stored, and each class's pixels."""
    found = source.surveyed_part("all")
    sizes = Counter(s.size for s in found)
    shown = [f"{w}x{h} ({count})" for (w, h), count in sizes.most_common(SHOWN_SIZES)]
    others = len(sizes) - len(shown)
    lines = [
        f"{source.name}: {len(found)} pictures with masks, {len(source.classes)} classes",
        f"sizes: {', '.join(shown)}" + f" and {others} others" * (others > 0),
        *kinds([found.pair for found in source.surveyed.values()]),
        "",
        f"{'id':>4} {'class':<24} {'pixels':>14} {'share':>7} {'pictures':>9}",
    ]
    pixels, _ = class_counts(found, source.classes)
    whole = sum(sum(s.class_pixels(source.classes).values()) for s in found)
    counts = [s.class_pixels(source.classes) for s in found]
    for k, name in enumerate(source.classes.names):
        number = int(pixels[k])
        pictures = sum(k in c for c in counts)
        lines.append(f"{k:>4} {name:<24} {number:>14,} {number / whole:>7.2%} {pictures:>9}")
    ignored = whole - int(pixels.sum())
    lines.append(f"{'':>4} {'does not count':<24} {ignored:>14,} {ignored / whole:>7.2%}")
    absent = [n for k, n in enumerate(source.classes.names) if pixels[k] == 0]
    if absent:
        lines.append(f"no mask has {', '.join(absent[:8])}" + " ..." * (len(absent) > 8))
    if source.broken:
        lines.append(f"{len(source.broken)} files cannot be used")
    return lines


def kinds(pairs: Sequence[Pair]) -> list[str]:
    """Returns lines about the channels of pictures, which name those that differ from most."""
    found = {pair: stored_kind(pair.image) for pair in pairs}
    counts = Counter(found.values())
    most, _ = counts.most_common(1)[0]
    lines = ["stored as: " + ", ".join(f"{_words(k)} ({n})" for k, n in counts.most_common())]
    others = [f"{pair.image.name} {_words(kind)}" for pair, kind in found.items() if kind != most]
    if others:
        more = f" and {len(others) - SHOWN_NAMES} more" * (len(others) > SHOWN_NAMES)
        lines.append(f"unlike most: {', '.join(others[:SHOWN_NAMES])}{more}")
    return lines


def _words(kind: Kind | None) -> str:
    return "unknown" if kind is None else str(kind)
