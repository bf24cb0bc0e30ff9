"""What ``fastseg crf --tune`` does: the CRF's numbers with the highest mean IoU on pictures."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastseg._core.atomic import atomic_write
from fastseg._core.devices import named_device
from fastseg.cli.crf_input import read_unary
from fastseg.cli.options import add_data_options, use_threads
from fastseg.cli.scored_data import add_split_option, scored_data
from fastseg.cli.weights import add_network_options, load_segmenter
from fastseg.data.channel_image import Picture, preview
from fastseg.data.charts import SIZE, draw_curve
from fastseg.data.classes import IGNORE
from fastseg.data.folder import PictureFolder
from fastseg.data.image import is_turned, write_png
from fastseg.data.transforms import EvalTransform
from fastseg.metrics import ConfusionMatrix
from fastseg.ops import dense_crf
from fastseg.segment.crf_search import (
    PARAMETERS,
    POWERS,
    STEPS,
    CRFSetting,
    Line,
    Search,
    search,
)
from fastseg.segment.predictor import Predictor

DEFAULT_FOLDER = Path("tuned")
CONFIG, TABLE, PICTURE = "crf.json", "table.csv", "scores.png"
"""Names of the files that are written."""

BLUE = (40, 90, 200)
COLUMNS = 3
"""Number of curves in a row of the picture."""

Energies = Callable[[int, Picture], Tensor]
"""Gives the energies, float32 (labels, H, W), of a picture by its place and its pixels."""


def add_tuning_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that go with ``--tune``."""
    tuning = parser.add_argument_group("tuning")
    tuning.add_argument(
        "--tune",
        action="store_true",
        help="find the numbers of --gaussian and --bilateral with the highest mean IoU on pictures "
        f"with masks, beginning with those given; --out is a folder for {CONFIG}, {TABLE} and "
        f"{PICTURE} (default: {DEFAULT_FOLDER})",
    )
    tuning.add_argument(
        "--rounds",
        type=int,
        default=len(STEPS),
        help="how often each number is searched, in finer steps each time (default: %(default)s)",
    )
    add_split_option(tuning)
    add_data_options(parser)
    add_network_options(parser)


def run_tuning(options: argparse.Namespace) -> int:
    """Searches, prints a table and writes the setting, all scores and a picture of them."""
    if options.image is not None or options.labels is not None:
        raise ValueError("--tune takes --unary DIR or --weights FILE, and pictures by --images")
    if not 0 <= options.rounds <= len(STEPS):
        raise ValueError(f"--rounds {options.rounds}: 0 to {len(STEPS)}")
    use_threads(options.threads)
    device = named_device(options.device)
    folder = options.output or DEFAULT_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    predictor = known = form = None
    if options.weights is not None:
        segmenter = load_segmenter(options)
        segmenter.model.to(device, memory_format=torch.channels_last)
        predictor, known = Predictor(segmenter, device), segmenter.mask_classes()
        form = segmenter.form
    elif not options.unary.is_dir():
        raise FileNotFoundError(f"--unary {options.unary}: with --tune it is a folder of outputs")
    source, part = scored_data(options, known, form)
    dataset = PictureFolder(source.parts[part], source.classes, EvalTransform(1), form=source.form)
    if predictor is None:
        energies = _saved(options.unary, options.kind, dataset)
    else:
        energies = _computed(predictor)

    start = CRFSetting(tuple(options.gaussian), tuple(options.bilateral))
    lines = options.rounds * len(PARAMETERS)
    runs = (2 + lines * len(POWERS)) * len(dataset)
    print(f"{len(dataset)} pictures, {len(source.classes)} classes, quality {options.quality}")
    with tqdm(total=runs, desc="tune", leave=False, mininterval=1) as bar:

        def score(settings: Sequence[CRFSetting]) -> list[float]:
            return mean_ious(
                settings, dataset, energies, device, options.iterations, options.quality, bar.update
            )

        def show(line: Line) -> None:
            shown.append(line)
            left = lines - len(shown)
            bar.total = bar.n + left * len(POWERS) * len(dataset)  # what was tried is not again
            _say(bar, f"{line.step:<6.3g} {line.title:<17} {_numbers(line.best)} {line.score:.4f}")

        shown: list[Line] = []
        without = CRFSetting((*start.gaussian[:-1], 0.0), (*start.bilateral[:-1], 0.0))
        (plain,) = score([without])
        _say(bar, f"{'step':<6} {'number':<17} {'gaussian':<14} {'bilateral':<22} mIoU")
        _say(bar, f"{'':<6} {'without the CRF':<17} {'':<14} {'':<22} {plain:.4f}")
        found = search(start, score, options.rounds, show)
    before, after = found.tried[start], found.tried[found.best]
    print(f"mIoU {plain:.4f} without the CRF, {before:.4f} as given, {after:.4f} tuned")
    _write(folder, found, options)
    return 0


def mean_ious(
    settings: Sequence[CRFSetting],
    dataset: PictureFolder,
    energies: Energies,
    device: torch.device,
    iterations: int,
    quality: str,
    on_picture: Callable[[], object],
) -> list[float]:
    """Returns the mean IoU of a data set after the CRF with each of several settings.

    A picture is read once and refined by all of them, so that memory holds one at a time.

    Raises:
        ValueError: a setting that the CRF refuses; no pixel counts.
    """
    matrices = [ConfusionMatrix(len(dataset.classes), IGNORE) for _ in settings]
    for index in range(len(dataset)):
        image, label = dataset.load(index)
        unary = energies(index, image).to(device)
        pixels = torch.from_numpy(np.array(preview(image))).permute(2, 0, 1).to(device)
        truth = torch.from_numpy(np.array(label))
        for setting, matrix in zip(settings, matrices, strict=True):
            try:
                q = dense_crf(
                    unary, pixels, setting.terms(), iterations=iterations, quality=quality
                )
            except RuntimeError as error:  # bandwidths that no lattice can number
                raise ValueError(f"{_numbers(setting)}: {error}") from None
            matrix.update(q.argmax(0).cpu(), truth)
            on_picture()
    scores = [matrix.mean_iou() for matrix in matrices]
    if any(math.isnan(score) for score in scores):
        raise ValueError("no pixel of the masks counts")
    return scores


def _saved(folder: Path, kind: str, dataset: PictureFolder) -> Energies:
    """Returns the energies in files of the pictures' names, .npz or .npy."""

    def energies(index: int, image: Picture) -> Tensor:
        pair, count = dataset.pairs[index], len(dataset.classes)
        paths = [folder / f"{pair.name}{suffix}" for suffix in (".npz", ".npy")]
        path = next((path for path in paths if path.exists()), None)
        if path is None:
            raise FileNotFoundError(f"{paths[0]}: no output for {pair.image}")
        found = read_unary(path, kind, image, is_turned(pair.image))
        if len(found) != count:
            raise ValueError(f"{path}: holds {len(found)} labels, the masks have {count} classes")
        return found

    return energies


def _computed(predictor: Predictor) -> Energies:
    """Returns the energies that a network computes."""

    @torch.inference_mode()
    def energies(index: int, image: Picture) -> Tensor:
        (scores,) = predictor.scores([image])
        full = F.interpolate(scores.float(), (image.height, image.width), mode="bilinear")
        return -full.log_softmax(1)[0]

    return energies


def _numbers(setting: CRFSetting) -> str:
    gaussian, bilateral = (
        " ".join(f"{value:g}" for value in values)
        for values in (setting.gaussian, setting.bilateral)
    )
    return f"{gaussian:<14} {bilateral:<22}"


def _say(bar: tqdm, line: str) -> None:
    bar.clear()
    print(line)
    sys.stdout.flush()


def _write(folder: Path, found: Search, options: argparse.Namespace) -> None:
    best = found.best
    config = {
        "gaussian": list(best.gaussian),
        "bilateral": list(best.bilateral),
        "iterations": options.iterations,
        "quality": options.quality,
    }
    files = {CONFIG: json.dumps(config, indent=1) + "\n", TABLE: _table(found)}
    for name, text in files.items():
        with atomic_write(folder / name) as file:
            file.write(text.encode())
    write_png(draw_scores(found), folder / PICTURE)
    print(f"fastseg crf --config {folder / CONFIG} takes them; all scores in {folder / TABLE},")
    print(f"and as a picture in {folder / PICTURE}")


def _table(found: Search) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([title.replace(" ", "_") for *_, title in PARAMETERS] + ["miou"])
    for setting, score in found.tried.items():
        values = [getattr(setting, option)[place] for option, place, _ in PARAMETERS]
        writer.writerow([*values, f"{score:.6f}"])
    return table.getvalue()


def draw_scores(found: Search) -> Image.Image:
    """Returns a picture of the highest mean IoU over each number, and over the search."""
    curves = []
    for option, place, title in PARAMETERS:
        best: dict[float, float] = {}
        for setting, score in found.tried.items():
            value = getattr(setting, option)[place]
            if value > 0:
                best[value] = max(score, best.get(value, score))
        mark = getattr(found.best, option)[place]
        curves.append(
            draw_curve(
                sorted(best.items()),
                f"mIoU over {title}",
                BLUE,
                from_zero=False,
                logarithmic=True,
                mark=mark if mark > 0 else None,
            )
        )
    start = next(iter(found.tried.values()))
    steps = [(0.0, start), *((k + 1.0, line.score) for k, line in enumerate(found.lines))]
    curves.append(draw_curve(steps, "best mIoU after each number", BLUE, from_zero=False))
    rows = -(-len(curves) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * SIZE[0], rows * SIZE[1]), "white")
    for k, curve in enumerate(curves):
        canvas.paste(curve, (k % COLUMNS * SIZE[0], k // COLUMNS * SIZE[1]))
    return canvas
