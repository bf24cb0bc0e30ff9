"""From a picture to the class of every pixel: a network, and what its weights expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fastseg.data.label_sets import label_set
from fastseg.data.transforms import normalise, resize_to_height
from fastseg.models import CRF_ITERATIONS, CRF_TERMS, main_logits
from fastseg.ops import dense_crf
from fastseg.zoo import SOURCES
from fastseg.zoo.checkpoint import CheckpointError
from fastseg.zoo.load import build

DEFAULT_WEIGHTS = "deeplabv3plus_mobilenet_v2_camvid"
SHORT_SIDE = 512
"""Pixels to which a picture is resized for weights that do not say: what most were trained at."""
MAX_ASPECT_RATIO = 8
"""A picture longer than this, to its short side, is squeezed for the network to this."""
MAX_CRF_PIXELS = 2**20
"""A larger picture is refined at this many pixels."""


@dataclass(frozen=True)
class Segmenter:
    """A network in evaluation mode and the rule by which it is fed.

    Attributes:
        model: from (1, 3, H, W) to logits (1, classes, H, W).
        name: of the network.
        classes: names by id.
        palette: RGB colours, 0 to 255, by id.
        mean: of the channels, in their order, of an image in 0 to 1.
        std: likewise.
        channels: "RGB", or "BGR" for weights that come from Caffe.
        short_side: pixels that the short side of a picture is resized to.
    """

    model: nn.Module
    name: str
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    mean: Sequence[float]
    std: Sequence[float]
    channels: str
    short_side: int

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        *,
        model: str | None = None,
        source: str = "auto",
        options: Mapping[str, Any] | None = None,
        short_side: int | None = None,
        backend: str = "fastseg",
    ) -> Segmenter:
        """A segmenter of shipped weights, of a file of ``fastseg.train``, or of another project's.

        Args:
            weights: a name of :func:`shipped_weights`, or a file; default:
                "deeplabv3plus_mobilenet_v2_camvid".
            model: the network's name, of ``fastseg.models.list_models()``; default: what the file
                is of.
            source: "auto", "fastseg" or a name of ``fastseg.zoo.SOURCES``.
            options: arguments of the network's builder, which win over what the file and its source
                say.
            short_side: pixels that a picture's short side is resized to; default: what the file
                says, or 512.
            backend: "fastseg" or "torch".

        Raises:
            FileNotFoundError: neither a file nor a shipped name.
            CheckpointError: a file that cannot be read, of no known source, of another model, or
                that does not fit.
            ValueError: an argument out of range.
        """
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side must be at least 1, got {short_side}")
        path = _weights_file(weights)
        network, known, name, metadata = build(
            path, model, source=source, **{"backend": backend, **(options or {})}
        )
        if metadata is not None:
            _check_metadata(metadata, path)
            return cls(
                network,
                name,
                metadata["classes"],
                metadata["palette"],
                metadata["mean"],
                metadata["std"],
                "RGB",
                short_side or metadata["short_side"],
            )
        labels = label_set(network.num_classes)
        rule = SOURCES[known].preprocessing
        return cls(
            network,
            name,
            labels.classes,
            labels.palette,
            rule.mean,
            rule.std,
            rule.channels,
            short_side or SHORT_SIDE,
        )

    def prepare(self, picture: Image.Image) -> Tensor:
        """The network's input for an RGB picture, float32 (1, 3, H, W), on the CPU."""
        longest = MAX_ASPECT_RATIO * min(picture.size)
        if max(picture.size) > longest:
            picture = picture.resize((min(picture.width, longest), min(picture.height, longest)))
        picture = resize_to_height(picture, self.short_side)
        if self.channels == "RGB":
            return normalise(picture, self.mean, self.std)[None]
        return normalise(picture, self.mean[::-1], self.std[::-1]).flip(0)[None]

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits (1, classes, h, w) of a prepared picture."""
        return main_logits(self.model(x))


@torch.inference_mode()
def refine(logits: Tensor, picture: Image.Image) -> Tensor:
    """Probabilities after a dense CRF of the picture's colours, with DeepLab v2's parameters.

    Args:
        logits: (1, C, h, w).
        picture: RGB; one of more than 2**20 pixels is scaled down to that many.

    Returns:
        float32 (1, C, H, W), of the picture's size or what it was scaled down to.
    """
    scale = min(1.0, (MAX_CRF_PIXELS / (picture.width * picture.height)) ** 0.5)
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    pixels = torch.from_numpy(np.array(picture.resize(size))).permute(2, 0, 1).to(logits.device)
    unary = -F.interpolate(logits.float(), pixels.shape[1:], mode="bilinear").log_softmax(1)
    return dense_crf(unary, pixels[None], CRF_TERMS, iterations=CRF_ITERATIONS)


@torch.inference_mode()
def highest_class(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The argmax, uint8 (H, W), of scores (1, C, h, w) that are resized bilinearly to ``size``."""
    # One class at a time: the logits of a large photo would take gigabytes.
    highest = F.interpolate(scores[:, :1], size, mode="bilinear", align_corners=False)
    labels = torch.zeros_like(highest, dtype=torch.uint8)
    for k in range(1, scores.shape[1]):
        plane = F.interpolate(scores[:, k : k + 1], size, mode="bilinear", align_corners=False)
        labels[plane > highest] = k
        torch.maximum(highest, plane, out=highest)
    return labels[0, 0].cpu().numpy()


def shipped_weights() -> list[str]:
    """Names of the weights that fastseg brings along; their card is fastseg/weights/README.md."""
    return sorted(path.stem for path in _weights().glob("*.pt"))


def _weights() -> Path:
    return Path(str(files("fastseg") / "weights"))


def _weights_file(weights: str | Path | None) -> Path:
    name = str(weights or DEFAULT_WEIGHTS)
    if name in shipped_weights():
        return _weights() / f"{name}.pt"
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no checkpoint at {name}; shipped ones are {', '.join(shipped_weights())}"
        )
    return Path(name)


def _check_metadata(metadata: Mapping[str, Any], path: Path) -> None:
    missing = [k for k in ("palette", "mean", "std", "short_side") if k not in metadata]
    if missing:
        raise CheckpointError(f"{path}: its metadata lacks {', '.join(missing)}")
    colours, classes = len(metadata["palette"]), len(metadata["classes"])
    if colours < classes:
        raise CheckpointError(f"{path}: a palette of {colours} colours for {classes} classes")
