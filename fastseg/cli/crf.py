"""Refine a segmentation along the edges of its picture with a dense CRF."""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastseg._core.devices import named_device
from fastseg._core.pairwise import PairwiseBilateral, PairwiseGaussian
from fastseg.cli.options import (
    add_config_option,
    add_machine_options,
    add_output_option,
    use_threads,
)
from fastseg.compat.pydensecrf.utils import unary_from_labels
from fastseg.data.image import (
    ImageError,
    ImageWarning,
    check_writable,
    class_shares,
    is_turned,
    overlay,
    present_classes,
    read_image,
    read_labels,
    write_png,
)
from fastseg.data.label_sets import voc_palette
from fastseg.ops import dense_crf

MAX_LABELS = 256
"""Largest number of labels in a PNG."""

MOST_IDS = 64
"""Number of different ids in a picture above which they are hardly labels."""

UPRIGHT = " when it is turned upright, as its orientation tag says"

DEFAULT_IGNORE = 255
"""Id of unsure pixels in PASCAL VOC and most other data sets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg crf`."""
    parser.add_argument("image", type=Path, help="any picture that Pillow can read")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--unary", type=Path, help="a network's output (labels, H, W), .npy or .npz"
    )
    source.add_argument(
        "--labels",
        type=Path,
        help="a segmentation, palette or grey PNG of ids, not of shades: a mask holds 0 and 1",
    )
    parser.add_argument(
        "--kind",
        choices=("logits", "softmax", "energy"),
        default="logits",
        help="what --unary holds (default: %(default)s)",
    )
    parser.add_argument(
        "--gt-prob", type=float, default=0.7, help="that a label is right (default: %(default)s)"
    )
    parser.add_argument("--ignore", type=int, help="id of unsure pixels (default: 255)")
    parser.add_argument("--num-labels", type=int, help="of --labels; default: the highest id + 1")
    parser.add_argument(
        "--gaussian",
        type=float,
        nargs=2,
        metavar=("SXY", "WEIGHT"),
        default=(3, 3),
        help="smoothness; weight 0 leaves it out (default: 3 3)",
    )
    parser.add_argument(
        "--bilateral",
        type=float,
        nargs=3,
        metavar=("SXY", "SRGB", "WEIGHT"),
        default=(80, 13, 10),
        help="appearance; weight 0 leaves it out (default: 80 13 10)",
    )
    parser.add_argument("--iterations", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--quality",
        choices=("compat", "high", "exact"),
        default="high",
        help="of the filter; compat is pydensecrf's (default: %(default)s)",
    )
    add_machine_options(parser)
    add_output_option(parser, default=Path("crf.png"), help="default: %(default)s")
    parser.add_argument(
        "--compare", type=Path, metavar="PNG", help="also a picture of before and after"
    )
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Refines a segmentation, writes the labels and prints their shares before and after."""
    device = named_device(options.device)
    use_threads(options.threads)
    for path in filter(None, (options.output, options.compare)):
        check_writable(path)
    image = read_image(options.image)
    turned = is_turned(options.image)
    palette = None
    if options.unary:
        energies = read_unary(options.unary, options.kind, image, turned)
        before = energies.argmin(0).to(torch.uint8).numpy()
    else:
        before, palette = read_ids(options.labels, image, turned)
        if options.ignore is None:
            check_no_mask(options.labels, before)
            options.ignore = DEFAULT_IGNORE
        if options.num_labels is None:
            _warn_of_shades(options.labels, before)
        energies = label_energies(
            options.labels, before, options.gt_prob, options.ignore, options.num_labels
        )
    if turned and not (options.labels and is_turned(options.labels)):
        warnings.warn(
            f"{options.image} is turned upright by its orientation tag; "
            f"{options.labels or options.unary} has none and is taken to be upright",
            ImageWarning,
            stacklevel=2,
        )
    palette = palette or voc_palette()
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    start = time.perf_counter()
    try:
        q = dense_crf(
            energies.to(device),
            pixels.to(device),
            _terms(options),
            iterations=options.iterations,
            quality=options.quality,
        )
    except RuntimeError as error:  # infinite energies, bandwidths that no lattice can number
        raise ValueError(error) from None
    after = q.argmax(0).to(torch.uint8).cpu().numpy()
    seconds = time.perf_counter() - start

    picture = Image.fromarray(after)
    picture.putpalette(sum(palette, ()))
    write_png(picture, options.output)
    _print_shares(options, image, before, after, seconds)
    if options.compare:
        names = [f"label {k}" for k in range(MAX_LABELS)]
        labelings = {"before": before, "after": after}
        write_png(overlay(image, labelings, names, palette), options.compare)
        print(f"before and after in {options.compare}")
    return 0


def _print_shares(options, image, before: np.ndarray, after: np.ndarray, seconds: float) -> None:
    changed = float((before != after).mean())
    print(
        f"{options.image}: {image.width} x {image.height}, {options.iterations} iterations, "
        f"quality {options.quality}, {seconds:.2f} s; {changed:.1%} of the pixels changed"
    )
    shares = [class_shares(labels, MAX_LABELS) for labels in (before, after)]
    for k in present_classes(np.maximum(*shares)):
        unsure = options.labels and k == options.ignore
        name = "unsure" if unsure else f"label {k}"
        print(f"  {name:<10} {shares[0][k]:6.1%} -> {shares[1][k]:6.1%}")
    print(f"written to {options.output}")


def _terms(options: argparse.Namespace) -> list:
    (sxy, weight), terms = options.gaussian, []
    if weight != 0:
        terms.append(PairwiseGaussian(sxy, weight))
    sxy, srgb, weight = options.bilateral
    if weight != 0:
        terms.append(PairwiseBilateral(sxy, srgb, weight))
    return terms


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


def _warn_of_shades(path: Path, ids: np.ndarray) -> None:
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
