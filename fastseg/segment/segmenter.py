"""Segmentation of a picture by a network, with the preprocessing that its weights expect."""

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

from fastseg.data.channel_image import ChannelImage, Picture, preview
from fastseg.data.classes import Classes
from fastseg.data.label_sets import label_set
from fastseg.data.picture_format import PictureFormat, read_picture
from fastseg.data.transforms import normalise
from fastseg.models import CRF_TERMS, main_logits
from fastseg.nn import DenseCRF
from fastseg.ops import dense_crf, upsample_argmax
from fastseg.zoo import SOURCES, Preprocessing
from fastseg.zoo.checkpoint import CheckpointError
from fastseg.zoo.load import build

DEFAULT_WEIGHTS = "deeplabv3plus_mobilenet_v2_camvid"
"""Name of the shipped weights that are used by default."""

SHORT_SIDE = 512
"""Pixels of a picture's short side for weights that do not say; most were trained at this size."""

MAX_SHORT_SIDE = 2**16
"""Largest number of pixels that a picture's short side is resized to."""

MAX_ASPECT_RATIO = 8
"""Largest ratio of a picture's sides; a longer picture is squeezed for the network."""

MAX_CRF_PIXELS = 2**20
"""Largest number of pixels at which the CRF refines; a larger picture is scaled down."""

# With DeepLab v2's weights and bandwidths, at which "high" needs four vertices a pixel. That filter
# and ten iterations take nearly five times as long, and change no mIoU on CamVid by more than a
# tenth of a point; see the card of the weights.
REFINE_ITERATIONS = 6
REFINE_QUALITY = "compat"


@dataclass(frozen=True)
class Segmenter:
    """A network in evaluation mode and the rule by which it is fed.

    Attributes:
        model: a network that turns (1, channels, H, W) into logits (1, classes, H, W).
        name: the network's name.
        classes: the classes' names by id.
        palette: RGB colours, 0 to 255, by id.
        mean: mean of each channel, in their order, of an image in 0 to 1; with a form in the units
            of its values.
        std: standard deviation of each channel in the same units.
        channels: "RGB", or "BGR" for weights that come from Caffe.
        short_side: pixels that the short side of a picture is resized to.
        mask_values: pairs of a stored value and a class, of the masks that the weights were trained
            on; None where the file does not say.
        form: how pictures are read as they are stored, with any number of channels; None is as RGB
            of 8 bits.
    """

    model: nn.Module
    name: str
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    mean: Sequence[float]
    std: Sequence[float]
    channels: str
    short_side: int
    mask_values: Sequence[Sequence[Any]] | None = None
    form: PictureFormat | None = None

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
        """Loads shipped weights, a file of ``fastseg.train``, or one of another project.

        Args:
            weights: a name of :func:`shipped_weights`, or a file; default:
                "deeplabv3plus_mobilenet_v2_camvid".
            model: the network's name in ``fastseg.models.list_models()``; default: the network that
                the file's keys tell.
            source: "auto", "fastseg" or a name of ``fastseg.zoo.SOURCES``.
            options: arguments of the network's builder, which win over what the file and its source
                say.
            short_side: pixels to which a picture's short side is resized; default: the file's, or
                512.
            backend: "fastseg" or "torch".

        Raises:
            FileNotFoundError: the weights are neither a file nor a shipped name.
            CheckpointError: a file that cannot be read, is of no known source or of another model,
                or does not fit.
            ValueError: an argument out of range.
        """
        if short_side is not None and short_side < 1:
            raise ValueError(f"short_side must be at least 1, got {short_side}")
        if short_side is not None and short_side > MAX_SHORT_SIDE:
            raise ValueError(f"short_side must be at most {MAX_SHORT_SIDE}, got {short_side}")
        path = weights_file(weights)
        network, known, name, metadata = build(
            path, model, source=source, **{"backend": backend, **(options or {})}
        )
        if metadata is not None:
            form = _checked_metadata(metadata, path)
            return cls(
                network,
                name,
                metadata["classes"],
                metadata["palette"],
                metadata["mean"],
                metadata["std"],
                "RGB",
                short_side or metadata["short_side"],
                metadata.get("mask_values"),
                form,
            )
        labels = label_set(network.num_classes)
        # A state_dict of fastseg's own says nothing; our networks take ImageNet's mean and std.
        rule = SOURCES[known].preprocessing if known in SOURCES else Preprocessing()
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

    def mask_classes(self) -> Classes:
        """Returns the classes with what the values of masks mean, ids from 0 if nobody says."""
        told = {"classes": self.classes, "palette": self.palette}
        if self.mask_values is not None:
            told["mask_values"] = self.mask_values
        return Classes.from_metadata(told)

    def read(self, path: str | Path) -> Picture:
        """Reads a picture as the network takes it: in RGB, or with the channels of the form.

        Raises:
            ImageError: the file cannot be read, or has other channels than the network takes.
        """
        return read_picture(path, self.form)

    def prepare(self, picture: Picture) -> Tensor:
        """Returns the network's input for a picture, float32 (1, channels, H, W), on the CPU.

        Args:
            picture: an RGB picture; for a network with a form, one that :meth:`read` returns.

        Raises:
            ValueError: a picture of another kind.
        """
        if isinstance(picture, ChannelImage) != (self.form is not None):
            takes = "RGB pictures" if self.form is None else f"pictures of {self.form}"
            raise ValueError(
                f"picture must be one that Segmenter.read returns, for {takes}; "
                f"got {type(picture).__name__}"
            )
        height, width = self.input_size(picture)
        longest = MAX_ASPECT_RATIO * min(picture.size)
        if max(picture.size) > longest:
            picture = picture.resize((min(picture.width, longest), min(picture.height, longest)))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if self.channels == "RGB":
            return normalise(picture, self.mean, self.std)[None]
        return normalise(picture, self.mean[::-1], self.std[::-1]).flip(0)[None]

    def input_size(self, picture: Picture) -> tuple[int, int]:
        """Returns height and width of the network's input for a picture."""
        longest = MAX_ASPECT_RATIO * min(picture.size)
        width, height = (min(side, longest) for side in picture.size)
        scale = self.short_side / min(width, height)
        return max(1, round(height * scale)), max(1, round(width * scale))

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Returns logits (1, classes, h, w) of a prepared picture."""
        return main_logits(self.model(x))


@torch.inference_mode()
def refine(logits: Tensor, picture: Picture) -> Tensor:
    """Returns probabilities after six steps of a dense CRF on the picture.

    The energy is DeepLab v2's, the filter that of Krähenbühl and Koltun's program.

    Args:
        logits: (1, C, h, w).
        picture: an RGB picture, or one of channels, of which the preview is taken; one of more than
            2**20 pixels is scaled down to that many.

    Returns:
        float32 (1, C, H, W), of the size of the picture, scaled down or not.
    """
    scale = min(1.0, (MAX_CRF_PIXELS / (picture.width * picture.height)) ** 0.5)
    size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
    shown = np.array(preview(picture).resize(size))
    pixels = torch.from_numpy(shown).permute(2, 0, 1).to(logits.device)
    unary = -F.interpolate(logits.float(), pixels.shape[1:], mode="bilinear").log_softmax(1)
    return dense_crf(
        unary, pixels[None], CRF_TERMS, iterations=REFINE_ITERATIONS, quality=REFINE_QUALITY
    )


def refining_crf(num_classes: int) -> DenseCRF:
    """Returns what :func:`refine` does as a module, for a network's option ``crf``."""
    crf = DenseCRF(num_classes, CRF_TERMS, REFINE_ITERATIONS, REFINE_QUALITY, trainable=())
    return crf.requires_grad_(False)


@torch.inference_mode()
def highest_class(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Returns the argmax, uint8 (H, W), of scores (1, C, h, w) resized bilinearly to ``size``.

    Raises:
        ValueError: there is one class, whose map would be zeros.
    """
    if scores.shape[1] < 2:
        raise ValueError(
            "the network has one class, whose map would be zeros; export it (fastseg export) and "
            "threshold its output, the logit of a foreground, at 0"
        )
    return upsample_argmax(scores, size)[0].cpu().numpy()


def shipped_weights() -> list[str]:
    """Returns the names of the weights in the package; fastseg/weights/README.md is their card."""
    return sorted(path.stem for path in _weights().glob("*.pt"))


def _weights() -> Path:
    return Path(str(files("fastseg") / "weights"))


def weights_file(weights: str | Path | None) -> Path:
    """Returns the file of shipped weights or of a path; None is the default's.

    Raises:
        FileNotFoundError: the weights are neither a file nor a shipped name.
    """
    name = str(weights or DEFAULT_WEIGHTS)
    if name in shipped_weights():
        return _weights() / f"{name}.pt"
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no checkpoint at {name}; shipped ones are {', '.join(shipped_weights())}"
        )
    return Path(name)


def _checked_metadata(metadata: Mapping[str, Any], path: Path) -> PictureFormat | None:
    """Returns the pictures' format that a file tells.

    Raises:
        CheckpointError: the file lacks something, or tells what does not fit.
    """
    missing = [k for k in ("palette", "mean", "std", "short_side") if k not in metadata]
    if missing:
        raise CheckpointError(f"{path}: its metadata lacks {', '.join(missing)}")
    colours, classes = len(metadata["palette"]), len(metadata["classes"])
    if colours < classes:
        raise CheckpointError(f"{path}: a palette of {colours} colours for {classes} classes")
    try:
        form = PictureFormat.from_metadata(metadata)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata tell no channels: {error}") from None
    for name in ("mean", "std"):
        if form is not None and len(metadata[name]) != form.in_channels:
            raise CheckpointError(
                f"{path}: {name} of {len(metadata[name])} channels for {form.in_channels} bands"
            )
    return form
