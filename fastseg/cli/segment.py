"""Segment a picture and write it with its classes in colour."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastseg.cli.compare import compare, table
from fastseg.cli.options import add_model_option
from fastseg.cli.options import device as named_device
from fastseg.data.image import (
    check_writable,
    class_shares,
    overlay,
    present_classes,
    read_image,
    write_png,
)
from fastseg.models import list_models
from fastseg.segment.segmenter import (
    DEFAULT_WEIGHTS,
    Segmenter,
    highest_class,
    refine,
    shipped_weights,
)
from fastseg.zoo import SOURCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg segment`."""
    parser.add_argument("image", type=Path, help="any picture that Pillow can read")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("segmented.png"), help="default: %(default)s"
    )
    shipped = ", ".join(shipped_weights())
    parser.add_argument(
        "--weights",
        help=f"{shipped}, or a checkpoint of fastseg or another project "
        f"(default: {DEFAULT_WEIGHTS})",
    )
    parser.add_argument(
        "--model", choices=list_models(), help="that --weights are of (default: told by its keys)"
    )
    parser.add_argument(
        "--source",
        choices=("auto", "fastseg", *SOURCES),
        default="auto",
        help="project that --weights are of (default: told by its keys)",
    )
    add_model_option(parser)
    parser.add_argument(
        "--short-side",
        type=int,
        help="pixels it is resized to for the network (default: what the weights say, or 512)",
    )
    parser.add_argument(
        "--crf", action="store_true", help="refine it along the picture's edges with a dense CRF"
    )
    parser.add_argument(
        "--beside", metavar="WEIGHTS", help="segment it with these too, and show both"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--compare", action="store_true", help="run torch's ops too: time, memory, equality"
    )


def run(options: argparse.Namespace) -> int:
    """Segments a picture, writes the result and prints the classes' shares."""
    device = named_device(options.device)
    check_writable(options.output)
    picture = read_image(options.image)
    size = (picture.height, picture.width)
    segmenter = _load(options, device)

    labelings, notes = {}, []
    if options.beside:
        other = _on(device, Segmenter.load(options.beside))
        if list(other.classes) != list(segmenter.classes):
            raise ValueError(f"--beside {options.beside} has other classes than --weights")
        title = other.name if other.name != segmenter.name else Path(options.beside).stem
        labelings[title] = highest_class(other(_input(other, picture, device)), size)
    x = _input(segmenter, picture, device)
    logits = segmenter(x)
    labelings[segmenter.name] = labels = highest_class(logits, size)
    if options.crf:
        start = time.perf_counter()
        refined = highest_class(refine(logits, picture), size)
        labelings[f"{segmenter.name} and dense CRF"] = refined
        seconds = time.perf_counter() - start
        notes = [
            f"dense CRF: {seconds:.2f} s; {(labels != refined).mean():.1%} of the pixels changed"
        ]
    write_png(overlay(picture, labelings, segmenter.classes, segmenter.palette), options.output)

    print(f"{options.image}: {picture.width} x {picture.height}, {segmenter.name} on {device}")
    print("\n".join(_shares(labelings, segmenter.classes) + notes))
    print(f"written to {options.output}")
    if options.compare:
        rival = _load(options, device, backend="torch")
        print(f"\n{segmenter.name} on {tuple(x.shape)}, {_threads(device)}:")
        print(table(compare({"fastseg": segmenter, "torch": rival}, x)))
    return 0


def _load(options: argparse.Namespace, device: torch.device, backend: str = "fastseg") -> Segmenter:
    try:
        segmenter = Segmenter.load(
            options.weights,
            model=options.model,
            source=options.source,
            options=dict(options.options),
            short_side=options.short_side,
            backend=backend,
        )
    except TypeError as error:  # there is no such --option
        raise ValueError(error) from error
    return _on(device, segmenter)


def _on(device: torch.device, segmenter: Segmenter) -> Segmenter:
    segmenter.model.to(device, memory_format=torch.channels_last)
    return segmenter


def _input(segmenter: Segmenter, picture: Image.Image, device: torch.device) -> Tensor:
    return segmenter.prepare(picture).to(device, memory_format=torch.channels_last)


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
