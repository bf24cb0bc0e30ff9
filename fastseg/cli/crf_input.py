"""What a dense CRF begins with: a network's saved output, or a picture of labels."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastseg.compat.pydensecrf.utils import unary_from_labels
from fastseg.data.image import ImageError, ImageWarning, read_labels
from fastseg.data.label_sets import voc_palette

MAX_LABELS = 256
"""Largest number of labels in a PNG."""

MOST_IDS = 64
"""Number of different ids in a picture above which they are hardly labels."""

UPRIGHT = " when it is turned upright, as its orientation tag says"

DEFAULT_IGNORE = 255
"""Id of unsure pixels in PASCAL VOC and most other data sets."""


def read_unary(path: Path, kind: str, image: Image.Image, turned: bool) -> Tensor:
    """Returns energies, float32 (labels, H, W), of a network's saved output.

    Args:
        path: a file .npy, or .npz of one array, (labels, H, W) of the image's size, 2 to 256
            labels.
        kind: "logits", "softmax" (probabilities) or "energy" (negative log-probabilities).
        image: the picture, of the same size.
        turned: whether the image is upright by its orientation tag, for messages.

    Raises:
        ValueError: the file holds something else.
        OSError: the file cannot be read.
    """
    try:
        values = np.load(path, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            with values as archive:
                arrays = {name: archive[name] for name in archive.files[:2]}
                if len(arrays) != 1:
                    raise ValueError(f"it holds {len(archive.files)} arrays: give one")
            (values,) = arrays.values()
    except OSError:
        raise
    except Exception as error:  # numpy's reader raises several kinds at malformed bytes
        raise ValueError(f"{path}: not an .npy or .npz of numbers ({error})") from None
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{path}: must hold an array of real numbers, got {values.dtype}")
    height, width = image.height, image.width
    if values.ndim != 3 or values.shape[1:] != (height, width):
        raise ValueError(
            f"{path}: must be of shape (labels, {height}, {width}), the picture's size"
            f"{UPRIGHT if turned else ''}, got {values.shape}"
        )
    if not 2 <= len(values) <= MAX_LABELS:
        raise ValueError(f"{path}: must hold 2 to {MAX_LABELS} labels, got {len(values)}")
    values = torch.from_numpy(values.astype(np.float32))
    if values.isnan().any():
        raise ValueError(f"{path}: must not hold NaN")
    if kind == "energy":
        return values
    if kind == "logits":
        return -F.log_softmax(values, 0)
    if values.min() < 0 or values.max() > 1.001:
        raise ValueError(f"{path}: probabilities must be 0 to 1; --kind logits if these are scores")
    return -values.clamp(1e-5, 1).log()


def read_ids(
    path: Path, image: Image.Image, turned: bool
) -> tuple[np.ndarray, list[tuple[int, int, int]] | None]:
    """Returns the ids in a picture of labels, uint8 (H, W), and its palette of 256 colours or None.

    Args:
        path: the picture of labels.
        image: the picture, of the same size.
        turned: whether the image is upright by its orientation tag, for messages.

    Raises:
        ValueError: :func:`fastseg.data.image.read_labels` refuses the file, or it has another size
            than the image.
    """
    ids, palette = read_labels(path)
    height, width = ids.shape
    if (width, height) != image.size:
        raise ImageError(
            f"{path}: is {width} x {height}, the picture {image.width} x {image.height}"
            f"{UPRIGHT if turned else ''}"
        )
    return ids, palette and palette + voc_palette()[len(palette) :]


def check_no_mask(path: Path, ids: np.ndarray) -> None:
    """Refuses ids whose meaning the default of --ignore, 255, would decide.

    Raises:
        ValueError: there are only 255 and perhaps 0, which may be a mask or unsure pixels.
    """
    found = np.unique(ids).tolist()
    if found in ([0, DEFAULT_IGNORE], [DEFAULT_IGNORE]):
        raise ValueError(
            f"{path}: holds {' and '.join(map(str, found))} alone: write 1 for the 255 of a mask; "
            "where 255 are unsure pixels, give --ignore 255"
        )


def warn_of_shades(path: Path, ids: np.ndarray) -> None:
    """Warns of many ids, since a palette or grey picture of anything can be read as ids."""
    found = len(np.unique(ids))
    if found > MOST_IDS:
        warnings.warn(
            f"{path}: holds {found} different ids, as a picture of shades or colours would; "
            "--num-labels says how many labels there are",
            ImageWarning,
            stacklevel=3,
        )


def label_energies(
    path: Path, ids: np.ndarray, gt_prob: float, ignore: int, num_labels: int | None
) -> Tensor:
    """Returns energies, float32 (labels, H, W), of ids; all alike where the id is `ignore`.

    Raises:
        ValueError: ids out of range, a probability outside (0, 1).
    """
    unsure = ids == ignore
    highest = int(ids[~unsure].max(initial=0))
    labels = max(2, highest + 1) if num_labels is None else num_labels
    if not 2 <= labels <= MAX_LABELS:
        raise ValueError(f"--num-labels {labels}: 2 to {MAX_LABELS}")
    if highest >= labels:
        raise ValueError(f"{path}: holds label {highest}, but there are {labels} labels")
    if not 0 < gt_prob < 1:
        raise ValueError(f"--gt-prob {gt_prob}: must be between 0 and 1")
    counted_from_1 = np.where(unsure, 0, ids.astype(np.int64) + 1)
    return torch.from_numpy(unary_from_labels(counted_from_1, labels, gt_prob)).view(
        labels, *ids.shape
    )
