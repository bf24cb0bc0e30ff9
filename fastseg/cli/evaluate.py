"""Score a network, or masks in a folder, on pictures whose true masks are known.

All metrics of ``fastseg.metrics`` are printed; ``--json`` and ``--html`` write them to a file, the
latter with bars, curves and the worst and best pictures. The classes are those of the weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from fastseg._core.atomic import atomic_write
from fastseg._core.devices import named_device
from fastseg.cli.options import (
    add_config_option,
    add_data_options,
    add_machine_options,
    use_threads,
)
from fastseg.cli.scored_data import add_split_option, scored_data
from fastseg.cli.weights import add_network_options, load_segmenter
from fastseg.data.folder import PictureFolder
from fastseg.data.source import DataSource
from fastseg.data.transforms import EvalTransform
from fastseg.models import finish
from fastseg.segment.predictor import DEFAULT_TILE, Predictor
from fastseg.segment.report import html_report
from fastseg.segment.scoring import (
    Labelled,
    Scores,
    predicted_by,
    predicted_in,
    score,
    shown_pictures,
)
from fastseg.segment.segmenter import refining_crf, shipped_weights

EXAMPLES = """examples:
  fastseg evaluate --weights run/best.pt --images img --masks mask --split run/split.json
  fastseg evaluate --weights run/best.pt --data CAMVID --split test --crf --html report.html
  fastseg evaluate --predictions masks --images img --masks mask --classes names.txt --json s.json
"""

SHOWN = 4
"""Number of worst and of best pictures in the report."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg evaluate`."""
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--weights", help=f"a checkpoint, or one of {', '.join(shipped_weights())}")
    scored.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="masks of class ids that `fastseg segment` wrote, with the pictures' names",
    )
    add_data_options(parser)
    add_split_option(parser)
    add_network_options(parser)
    parser.add_argument("--short-side", type=int, help="pixels (default: what the weights say)")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="average over these (default: 1)"
    )
    parser.add_argument("--flip", action="store_true", help="average over flipped pictures, too")
    parser.add_argument(
        "--tile", type=int, default=DEFAULT_TILE, help="side of tiles (default: %(default)s)"
    )
    parser.add_argument(
        "--crf",
        action="store_true",
        help="refine by the CRF of `fastseg segment --crf`, at the network's resolution",
    )
    parser.add_argument("--backend", default="fastseg", choices=("fastseg", "torch"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report to look at")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="write score.json and report.html there"
    )
    add_machine_options(parser)
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Scores pictures, prints a table and writes what is asked for."""
    use_threads(options.threads)
    device = named_device(options.device)
    files = _output_files(options)
    predictor = None if options.predictions else _predictor(options, device)
    known = form = None
    if predictor is not None:
        known, form = predictor.segmenter.mask_classes(), predictor.segmenter.form
    source, part = scored_data(options, known, form)
    dataset = PictureFolder(source.parts[part], source.classes, EvalTransform(1), form=source.form)
    if predictor is None:
        if not options.predictions.is_dir():
            raise FileNotFoundError(f"--predictions {options.predictions}: not a folder")
        predict = partial(predicted_in, options.predictions, dataset)
    else:
        predict = partial(predicted_by, predictor, dataset)
    with tqdm(total=len(dataset), desc="evaluate", leave=False, mininterval=1) as bar:
        scores = score(predict(), dataset, bar.update)
    _print(scores)
    facts = _facts(options, source, len(dataset))
    if "json" in files:
        text = json.dumps({**scores.as_json(), "facts": facts}, indent=1)
        _write(files["json"], text)
    if "html" in files:
        _write(files["html"], _report(facts, scores, predict))
    for path in files.values():
        print(f"written to {path}")
    return 0


def _output_files(options: argparse.Namespace) -> dict[str, Path]:
    """Returns the files to write by kind, whose folders are there."""
    files = {kind: getattr(options, kind) for kind in ("json", "html") if getattr(options, kind)}
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        files = {"json": options.out / "score.json", "html": options.out / "report.html"} | files
    for path in files.values():
        if path.is_dir():
            raise ValueError(f"{path}: cannot be written (it is a folder)")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: cannot be written (there is no folder {path.parent})")
    return files


def _predictor(options: argparse.Namespace, device: torch.device) -> Predictor:
    segmenter = load_segmenter(options, options.backend, options.short_side)
    if options.crf:
        crf = refining_crf(segmenter.model.num_classes)
        finish(segmenter.model, crf=crf, backend=options.backend)
    segmenter.model.to(device, memory_format=torch.channels_last)
    return Predictor(segmenter, device, options.scales, options.flip, tile=options.tile)


def _print(scores: Scores) -> None:
    for name, value in scores.summary().items():
        print(f"{name:<22} {value:.4f}")
    for name, found in scores.by_class().items():
        print(f"IoU {name:<18} {found['iou']:.4f}")


def _facts(options: argparse.Namespace, source: DataSource, pictures: int) -> dict[str, str]:
    """Returns what was scored and how."""
    facts = {
        "scored": str(options.weights or options.predictions),
        "data": options.data or f"{options.images} with {options.masks}",
        "pictures": f"{pictures}" + f", {options.split}" * bool(options.split),
        "classes": str(len(source.classes)),
    }
    if options.weights:
        facts["scales"] = ", ".join(f"{scale:g}" for scale in options.scales)
        facts["flipped, too"] = "yes" if options.flip else "no"
        facts["dense CRF"] = "yes" if options.crf else "no"
    return facts


def _report(
    facts: dict[str, str], scores: Scores, predict: Callable[..., Iterator[Labelled]]
) -> str:
    worst, best = shown_pictures(scores, SHOWN)
    groups: dict[str, Sequence[Labelled]] = {
        name: list(predict(chosen=[p.index for p in chosen]))
        for name, chosen in (("Worst pictures", worst), ("Best pictures", best))
    }
    return html_report(f"Scores of {facts['scored']}", facts, scores, groups)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        # The name of a file may be no UTF-8, and is readable nevertheless.
        file.write(text.encode(errors="backslashreplace"))
