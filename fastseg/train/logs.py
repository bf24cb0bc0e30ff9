"""What a run leaves to look at: a table of its epochs, curves, samples, and TensorBoard's files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastseg._core.atomic import atomic_write
from fastseg._core.json_values import without_nan
from fastseg.data.charts import SIZE, draw_curve

CURVES = {"loss": ("loss", (200, 60, 40)), "miou": ("validation mIoU", (40, 90, 200))}
"""Titles and colours of the curves, by their names in the history."""

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
        self.write_json("history.json", without_nan(list(history)))
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
        canvas.paste(draw_curve(points, title, colour), (k * SIZE[0], 0))
    return canvas
