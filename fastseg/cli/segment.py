"""Segment a picture and write it with its classes in colour."""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastseg.checkpoint import CheckpointError, load_model
from fastseg.cli.options import device as named_device
from fastseg.compare import compare, table
from fastseg.data.transforms import normalise, resize_to_height
from fastseg.image import (
    check_writable,
    class_shares,
    overlay,
    present_classes,
    read_image,
    write_png,
)

DEFAULT_WEIGHTS = "segnet_basic_camvid.pt"
MAX_ASPECT_RATIO = 8
"""A picture longer than this, to its short side, is squeezed for the network to this."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `fastseg segment`."""
    parser.add_argument("image", type=Path, help="any picture that Pillow can read")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("segmented.png"), help="default: %(default)s"
    )
    parser.add_argument(
        "--weights", type=Path, help="file of python -m fastseg.train; default: the one shipped"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--compare", action="store_true", help="run torch's ops too: time, memory, equality"
    )


def run(options: argparse.Namespace) -> int:
    """Segments, writes the picture, prints the classes' shares."""
    device = named_device(options.device)
    check_writable(options.output)
    image = read_image(options.image)
    with as_file(files("fastseg") / "weights" / DEFAULT_WEIGHTS) as shipped:
        weights = options.weights or shipped
        model, metadata = load_model(weights)
        torch_model = load_model(weights, backend="torch")[0] if options.compare else None
    _check_metadata(metadata, weights)

    x = prepare(image, metadata).to(device, memory_format=torch.channels_last)
    model = model.to(device, memory_format=torch.channels_last)
    labels = segment(model, x, (image.height, image.width))
    classes, palette = metadata["classes"], metadata["palette"]
    write_png(overlay(image, labels, classes, palette), options.output)

    shares = class_shares(labels, len(classes))
    print(f"{options.image}: {image.width} x {image.height}, {metadata['model']} on {device}")
    for k in present_classes(shares):
        print(f"  {classes[k]:<12} {shares[k]:6.1%}")
    print(f"written to {options.output}")
    if torch_model is not None:
        torch_model = torch_model.to(device, memory_format=torch.channels_last)
        print(f"\n{metadata['model']} on {tuple(x.shape)}, {_threads(device)}:")
        print(table(compare({"fastseg": model, "torch": torch_model}, x)))
    return 0


def prepare(image: Image.Image, metadata: dict) -> Tensor:
    """The network's input for a picture, float32 (1, 3, H, W), by the rule of its weights file."""
    longest = MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) > longest:
        image = image.resize((min(image.width, longest), min(image.height, longest)))
    resized = resize_to_height(image, metadata["short_side"])
    return normalise(resized, metadata["mean"], metadata["std"])[None]


@torch.inference_mode()
def segment(model: nn.Module, x: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Class ids (H, W) at ``size``: logits are resized bilinearly before the argmax."""
    logits = model(x)
    # One class at a time: the logits of a large photo would take gigabytes.
    highest = F.interpolate(logits[:, :1], size, mode="bilinear", align_corners=False)
    labels = torch.zeros_like(highest, dtype=torch.uint8)
    for k in range(1, logits.shape[1]):
        plane = F.interpolate(logits[:, k : k + 1], size, mode="bilinear", align_corners=False)
        labels[plane > highest] = k
        torch.maximum(highest, plane, out=highest)
    return labels[0, 0].cpu().numpy()


def _check_metadata(metadata: dict, weights: Path) -> None:
    missing = [k for k in ("palette", "mean", "std", "short_side") if k not in metadata]
    if missing:
        raise CheckpointError(f"{weights}: its metadata lacks {', '.join(missing)}")
    colours, classes = len(metadata["palette"]), len(metadata["classes"])
    if colours < classes:
        raise CheckpointError(f"{weights}: a palette of {colours} colours for {classes} classes")


def _threads(device: torch.device) -> str:
    return str(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
