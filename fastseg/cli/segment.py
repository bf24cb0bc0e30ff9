"""Segment a picture and write it with its classes in colour; or many, and write their masks.

One picture is written beside its classes' names. Of several pictures, a folder or a pattern, the
masks go into the folder --out as palette PNGs of class ids, which ``fastseg crf --labels`` and
``fastseg evaluate --predictions`` take. The frames of a video are pictures, too. A picture that
cannot be read is reported and left out, and the exit status is 1. Pictures whose results are there
already are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from fastseg._core.devices import named_device
from fastseg.cli.compare import compare, table
from fastseg.cli.options import (
    add_config_option,
    add_machine_options,
    add_output_option,
    use_threads,
)
from fastseg.cli.running import UNFINISHED
from fastseg.cli.weights import add_network_options, add_weights_option, load_segmenter
from fastseg.data.channel_image import preview
from fastseg.data.image import check_writable, write_png
from fastseg.data.overlay import class_shares, overlay, present_classes
from fastseg.data.pairs import SUFFIXES
from fastseg.data.picture_format import read_picture
from fastseg.segment.jobs import Job, find_jobs, is_many
from fastseg.segment.many import Outputs, segment_many, write_coco
from fastseg.segment.predictor import DEFAULT_TILE, Predictor
from fastseg.segment.record import results_in
from fastseg.segment.segmenter import Segmenter, highest_class, refine, weights_file

EXAMPLES = """examples:
  fastseg segment photo.jpg --crf
  fastseg segment pictures --weights run/best.pt -o masks --overlay
  fastseg segment drive.mp4 --weights run/best.pt -o masks --coco masks.json
  fastseg segment 'frames/*.png' --weights run/best.pt -o masks --batch-size 4 --probabilities
"""

ONE, MANY = Path("segmented.png"), Path("segmented")
"""Where the results go by default: of one picture, and of many."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg segment`."""
    parser.add_argument(
        "image",
        nargs="+",
        help="any picture that Pillow can read, or a TIFF of many channels; or several, folders, "
        "patterns, videos",
    )
    add_output_option(
        parser,
        help=f"PNG for one picture, a folder for its mask or many (default: {ONE} or {MANY})",
    )
    add_weights_option(parser)
    add_network_options(parser)
    parser.add_argument(
        "--short-side",
        type=int,
        help="pixels it is resized to for the network (default: what the weights say, or 512)",
    )
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0], help="average over these (default: 1)"
    )
    parser.add_argument("--flip", action="store_true", help="average over flipped pictures, too")
    parser.add_argument(
        "--tile",
        type=int,
        default=DEFAULT_TILE,
        help="side of the tiles that larger inputs are cut into (default: %(default)s)",
    )
    parser.add_argument(
        "--crf", action="store_true", help="refine it along the picture's edges with a dense CRF"
    )
    parser.add_argument(
        "--beside", metavar="WEIGHTS", help="segment it with these too, and show both"
    )
    parser.add_argument(
        "--compare", action="store_true", help="run torch's ops too: time, memory, equality"
    )
    many = parser.add_argument_group("masks in a folder")
    many.add_argument(
        "--probabilities", action="store_true", help="also NAME.npz, float16 (classes, H, W)"
    )
    many.add_argument(
        "--overlay", action="store_true", help="also NAME_overlay.png, the classes over the picture"
    )
    many.add_argument(
        "--coco", type=Path, metavar="FILE", help="also all masks as run-length codes, COCO's JSON"
    )
    many.add_argument("--batch-size", type=int, default=1, help="pictures of one size at once")
    many.add_argument("--overwrite", action="store_true", help="also what is there already")
    add_machine_options(parser)
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Segments one picture, or many; returns 1 where some of many are broken."""
    use_threads(options.threads)
    device = named_device(options.device)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: at least 1")
    if _writes_masks(options):
        return _run_many(options, device)
    (options.image,) = options.image
    options.output = options.output or ONE
    return _run_one(options, device)


def _writes_masks(options: argparse.Namespace) -> bool:
    """Whether masks are written into a folder, rather than one picture."""
    if is_many(options.image) or options.probabilities or options.overlay or options.coco:
        return True
    output = options.output
    return output is not None and (output.is_dir() or not output.suffix)


def _run_many(options: argparse.Namespace, device: torch.device) -> int:
    if options.beside or options.compare:
        raise ValueError("--beside and --compare take one picture and a PNG for --out")
    outputs = Outputs(options.output or MANY, options.probabilities, options.overlay)
    if outputs.folder.exists() and not outputs.folder.is_dir():
        raise ValueError(f"{outputs.folder}: many masks need a folder, this is a file")
    if options.coco and not options.coco.parent.is_dir():
        raise FileNotFoundError(
            f"{options.coco}: cannot be written (there is no folder {options.coco.parent})"
        )
    jobs = find_jobs(options.image, results_in(outputs.folder))
    if outputs.folder.suffix.lower() in SUFFIXES and not outputs.folder.exists():
        raise ValueError(
            f"{outputs.folder}: masks go into a folder, with what --overlay, --probabilities and "
            "--coco add; this is the name of a picture"
        )
    predictor = _predictor(_load(options, device), options, device, options.crf)
    count = {"written": 0, "there already": 0, "broken": 0}
    with tqdm(total=len(jobs), desc="segment", leave=False, mininterval=1) as bar:

        def done(job: Job, problem: str | None) -> None:
            count["there already" if problem == "" else "broken" if problem else "written"] += 1
            if problem:
                bar.clear()
                print(f"fastseg: {problem}", file=sys.stderr)
            bar.update()

        broken = segment_many(
            predictor,
            jobs,
            outputs,
            batch_size=options.batch_size,
            settings=_settings(options),
            overwrite=options.overwrite,
            on_done=done,
        )
    shown = ", ".join(f"{number} {what}" for what, number in count.items() if number)
    print(f"{len(jobs)} pictures, {predictor.segmenter.name} on {device}: {shown}")
    print(f"masks in {outputs.folder}")
    if options.coco:
        count = write_coco(options.coco, jobs, outputs.folder, predictor.segmenter.classes)
        print(f"{count} of them in {options.coco}")
    return UNFINISHED if broken else 0


def _settings(options: argparse.Namespace) -> dict[str, object]:
    """Returns what the results depend on."""
    names = ("model", "source", "short_side", "crf", "scales", "flip", "tile")
    path = weights_file(options.weights)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    told = {name: getattr(options, name) for name in names}
    return {"weights": path.name, "sha256": digest, **told, "options": repr(options.options)}


def _run_one(options: argparse.Namespace, device: torch.device) -> int:
    """Segments a picture, writes the result and prints the classes' shares."""
    check_writable(options.output)
    segmenter = _load(options, device)
    picture = read_picture(options.image, segmenter.form)
    size = (picture.height, picture.width)

    labelings, notes = {}, []
    if options.beside:
        other = _on(device, Segmenter.load(options.beside))
        if list(other.classes) != list(segmenter.classes):
            raise ValueError(f"--beside {options.beside} has other classes than --weights")
        if other.form != segmenter.form:
            raise ValueError(
                f"--beside {options.beside} takes {other.form or 'RGB'}, --weights "
                f"{segmenter.form or 'RGB'}: pictures of other channels"
            )
        title = other.name if other.name != segmenter.name else Path(options.beside).stem
        (scores,) = _predictor(other, options, device).scores([picture])
        labelings[title] = highest_class(scores, size)
    (scores,) = _predictor(segmenter, options, device).scores([picture])
    labelings[segmenter.name] = labels = highest_class(scores, size)
    if options.crf:
        start = time.perf_counter()
        refined = highest_class(refine(scores, picture), size)
        labelings[f"{segmenter.name} and dense CRF"] = refined
        seconds = time.perf_counter() - start
        notes = [
            f"dense CRF: {seconds:.2f} s; {(labels != refined).mean():.1%} of the pixels changed"
        ]
    shown = preview(picture)
    write_png(overlay(shown, labelings, segmenter.classes, segmenter.palette), options.output)

    print(f"{options.image}: {picture.width} x {picture.height}, {segmenter.name} on {device}")
    print("\n".join(_shares(labelings, segmenter.classes) + notes))
    print(f"written to {options.output}")
    if options.compare:
        rival = _load(options, device, backend="torch")
        x = segmenter.prepare(picture).to(device, memory_format=torch.channels_last)
        print(f"\n{segmenter.name} on {tuple(x.shape)}, {_threads(device)}:")
        print(table(compare({"fastseg": segmenter, "torch": rival}, x)))
    return 0


def _load(options: argparse.Namespace, device: torch.device, backend: str = "fastseg") -> Segmenter:
    return _on(device, load_segmenter(options, backend, options.short_side))


def _on(device: torch.device, segmenter: Segmenter) -> Segmenter:
    segmenter.model.to(device, memory_format=torch.channels_last)
    return segmenter


def _predictor(
    segmenter: Segmenter, options: argparse.Namespace, device: torch.device, crf: bool = False
) -> Predictor:
    return Predictor(segmenter, device, options.scales, options.flip, crf, options.tile)


def _shares(labelings: dict, classes: list[str]) -> list[str]:
    """Returns a row per class with its share in each labelling."""
    shares = [class_shares(labels, len(classes)) for labels in labelings.values()]
    titles = list(labelings) if len(labelings) > 1 else [""]
    lines = [f"  {'':<12} " + "  ".join(titles)] if len(titles) > 1 else []
    widths = [max(6, len(title)) for title in titles]
    for k in present_classes(shares[-1]):
        row = (f"{s[k]:>{w}.1%}" for s, w in zip(shares, widths, strict=True))
        lines.append(f"  {classes[k]:<12} " + "  ".join(row))
    return lines


def _threads(device: torch.device) -> str:
    return str(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
