"""What a run leaves to look at: a table of its epochs, curves, samples, and TensorBoard's files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fastseg._core.atomic import atomic_write

SIZE = (480, 280)
MARGIN = (64, 28)
CURVES = {"loss": ("loss", (200, 60, 40)), "miou": ("validation mIoU", (40, 90, 200))}
"""Titles and colours of the curves, by their names in the history."""

FONT = 12

History = Sequence[dict[str, float]]


class RunLog:
    """The files of a run's progress, written anew after each epoch and never half.

    Args:
        out: the run's folder.
        tensorboard: whether to write TensorBoard's files too.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, out: Path, tensorboard: bool = False) -> None:
        self.out = out
        self.writer = _summary_writer(out / "tensorboard") if tensorboard else None

    def write(self, history: History) -> None:
        """Writes ``history.json``, ``log.csv`` and ``curves.png`` of all epochs so far."""
        names = list(dict.fromkeys(name for record in history for name in record))
        table = io.StringIO()
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write_json("history.json", list(history))
        with atomic_write(self.out / "log.csv") as file:
            file.write(table.getvalue().encode())
        self.write_picture("curves.png", draw_curves(history))
        if self.writer is not None:
            record = history[-1]
            for name, value in record.items():
                if name != "epoch":
                    self.writer.add_scalar(name, value, int(record["epoch"]))
            self.writer.flush()

    def write_json(self, name: str, contents: Any) -> None:
        """Writes a JSON file into the run's folder."""
        with atomic_write(self.out / name) as file:
            file.write(json.dumps(contents, indent=1).encode())

    def write_picture(self, name: str, picture: Image.Image) -> None:
        """Writes a PNG into the run's folder."""
        with atomic_write(self.out / name) as file:
            picture.save(file, format="PNG")


def _summary_writer(folder: Path) -> Any:
    """Returns TensorBoard's writer, imported here because it is optional and takes seconds."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--tensorboard needs tensorboard ({error}): pip install tensorboard"
        ) from None
    return SummaryWriter(folder)


def draw_curves(history: History) -> Image.Image:
    """Returns a picture of the loss and the validation mIoU over the epochs."""
    canvas = Image.new("RGB", (SIZE[0] * len(CURVES), SIZE[1]), "white")
    for k, (name, (title, colour)) in enumerate(CURVES.items()):
        points = [
            (r["epoch"], r[name]) for r in history if r.get(name, float("nan")) == r.get(name)
        ]
        canvas.paste(_curve(points, title, colour), (k * SIZE[0], 0))
    return canvas


def _curve(
    points: Sequence[tuple[float, float]], title: str, colour: tuple[int, int, int]
) -> Image.Image:
    font = ImageFont.load_default(FONT)
    panel = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(panel)
    (left, top), right, bottom = MARGIN, SIZE[0] - 16, SIZE[1] - MARGIN[1]
    draw.text((left, 6), title, "black", font)
    draw.line((left, top, left, bottom, right, bottom), "black")
    if not points:
        return panel
    xs, ys = zip(*points, strict=True)
    low, high = min(0.0, *ys), max(*ys, 1e-9)
    first, last = xs[0], max(xs[-1], xs[0] + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - first) / (last - first) * (right - left)
        return across, bottom - (y - low) / (high - low) * (bottom - top)

    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        _, height = place(first, value)
        draw.line((left, height, right, height), (225, 225, 225))
        draw.text((left - 6, height), f"{value:.3g}", "black", font, anchor="rm")
    for x in (first, last):
        draw.text((place(x, low)[0], bottom + 5), f"{x:g}", "black", font, anchor="ma")
    line = [place(x, y) for x, y in points]
    if len(line) > 1:
        draw.line(line, colour, width=2)
    for x, y in line if len(line) < 60 else line[-1:]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    return panel
