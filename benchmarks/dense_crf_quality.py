"""Gains of a dense CRF in real use: VOC pictures with a network, a brain volume with noise.

python -m benchmarks.dense_crf_quality voc --data VOC22 --weights FILE [--figure FILE]
python -m benchmarks.dense_crf_quality volume --image T1.nii.gz --labels LABELS.nii.gz

voc takes the logits of a DeepLabv3-MobileNetV2 at the pictures' own size, and prints mIoU before
and after, and within bands around the borders of the ground truth (the trimap of Kohli et al., IJCV
2009). The CRF's parameters are those of a small grid with the highest mIoU over train.txt; the
result is over val.txt, which nothing was chosen on.

volume takes energies of a voxel classifier that is simulated by adding noise to the true labels,
and prints Dice before and after a CRF in three dimensions. Parameters are chosen on the lower half
of the slices and reported on the upper half.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fastseg
from benchmarks.deeplab_mobilenet import deeplab_logits
from fastseg.metrics import ConfusionMatrix

VOID = 255
CLASSES = 21
RADII = (2, 4, 6, 8, 12, 16, 20)
TISSUES = ("other", "grey matter", "white matter")
NIFTI_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 512: "u2"}


@dataclass(frozen=True)
class Parameters:
    """Parameters of a spatial and a bilateral term."""

    gaussian: float
    gaussian_weight: float
    bilateral: float
    colour: float
    bilateral_weight: float

    def terms(self) -> list:
        return [
            fastseg.PairwiseGaussian(self.gaussian, self.gaussian_weight),
            fastseg.PairwiseBilateral(self.bilateral, self.colour, self.bilateral_weight),
        ]

    def __str__(self) -> str:
        return (
            f"{self.gaussian:g} w{self.gaussian_weight:g}; {self.bilateral:g}/{self.colour:g} "
            f"w{self.bilateral_weight:g}"
        )


README_OF_PYDENSECRF = Parameters(3, 3, 80, 13, 10)


def grid(*values: Iterable[float]) -> list[Parameters]:
    """Returns all combinations of values."""
    return [Parameters(*combination) for combination in itertools.product(*values)]


VOC_GRID = grid((3,), (1, 3), (30, 50, 80), (3, 5, 13), (2, 4, 7, 10))
VOLUME_GRID = grid((1,), (0.5, 1, 2), (2, 4, 8), (5, 10, 20), (1, 3, 6))


@dataclass
class Picture:
    """A picture of VOC with the network's opinion."""

    image: Tensor  # uint8 (3, H, W)
    truth: Tensor  # int64 (H, W)
    unary: Tensor  # (21, H, W)

    def labels(self, parameters: Parameters | None, options: argparse.Namespace) -> Tensor:
        """Returns labels (H, W), those of the network alone without parameters."""
        if parameters is None:
            return self.unary.argmin(0)
        return fastseg.dense_crf(
            self.unary,
            self.image,
            parameters.terms(),
            iterations=options.iterations,
            quality=options.quality,
        ).argmax(0)


def load_voc(data: Path, weights: dict[str, Tensor], split: str) -> list[Picture]:
    """Reads the pictures of a list, in the layout of PASCAL VOC."""
    pictures = []
    for name in (data / f"{split}.txt").read_text().split():
        image = np.array(Image.open(data / f"JPEGImages/{name}.jpg").convert("RGB"))
        truth = np.array(Image.open(data / f"SegmentationClass/{name}.png"))
        logits = deeplab_logits(weights, image)
        pictures.append(
            Picture(
                torch.from_numpy(image).permute(2, 0, 1).contiguous(),
                torch.from_numpy(truth.astype(np.int64)),
                -F.log_softmax(logits, 0),
            )
        )
    return pictures


def band(truth: Tensor, radius: int) -> Tensor:
    """Returns a mask (H, W) of pixels within a radius, by rows and columns, of another label."""
    borders = torch.zeros_like(truth, dtype=torch.bool)
    down, right = truth[1:] != truth[:-1], truth[:, 1:] != truth[:, :-1]
    borders[1:] |= down
    borders[:-1] |= down
    borders[:, 1:] |= right
    borders[:, :-1] |= right
    size = 2 * radius - 1  # the border's own pixels are at distance 1
    return F.max_pool2d(borders[None, None].float(), size, 1, radius - 1)[0, 0].bool()


def score(
    labels: Sequence[Tensor], pictures: Sequence[Picture], radius: int | None = None
) -> ConfusionMatrix:
    """Scores all pictures, within a band if a radius is given."""
    confusion = ConfusionMatrix(CLASSES, VOID)
    for predicted, picture in zip(labels, pictures, strict=True):
        truth = picture.truth
        if radius is not None:
            truth = torch.where(band(truth, radius), truth, VOID)
        confusion.update(predicted, truth)
    return confusion


def best(grid: Sequence[Parameters], gain) -> Parameters:
    """Returns the first parameters with the highest gain; prints all gains."""
    gains = []
    for parameters in grid:
        gains.append(gain(parameters))
        print(f"  {parameters!s:<28} {gains[-1]:.4f}", flush=True)
    return grid[int(np.argmax(gains))]


def run_voc(options: argparse.Namespace) -> None:
    """Chooses parameters on train, prints the table of val."""
    weights = torch.load(options.weights, weights_only=True)
    train = load_voc(options.data, weights, "train")
    before = score([p.labels(None, options) for p in train], train).mean_iou()
    print(f"mIoU on train without CRF {before:.4f}, with")

    def gain(parameters: Parameters) -> float:
        return score([p.labels(parameters, options) for p in train], train).mean_iou()

    chosen = best(VOC_GRID, gain)
    val = load_voc(options.data, weights, "val")
    settings = {"network": None, "chosen": chosen, "pydensecrf's README": README_OF_PYDENSECRF}
    results = {
        name: [p.labels(parameters, options) for p in val] for name, parameters in settings.items()
    }
    print(f"\nval, {len(val)} pictures, quality {options.quality}, {options.iterations} iterations")
    print(f"{'':<44} {'mIoU':>6} {'acc.':>6}  mIoU within {', '.join(map(str, RADII))} pixels")
    curves = {}
    for name, labels in results.items():
        whole = score(labels, val)
        curves[name] = [score(labels, val, radius).mean_iou() for radius in RADII]
        title = f"{name} ({settings[name]})" if settings[name] else name
        trimap = " ".join(f"{100 * v:5.1f}" for v in curves[name])
        print(
            f"{title:<44} {100 * whole.mean_iou():6.2f} {100 * whole.pixel_accuracy():6.2f}  "
            f"{trimap}"
        )
    if options.figure:
        draw(curves, options.figure)


def draw(curves: dict[str, Sequence[float]], path: Path) -> None:
    """Draws the trimap curve; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(RADII, [100 * v for v in values], marker="o", label=name)
    axes.set(xlabel="width of the band in pixels", ylabel="mIoU in the band, percent")
    axes.legend()
    figure.savefig(path)


def read_nifti(path: Path) -> np.ndarray:
    """Reads the volume of a NIfTI-1 file (.nii or .nii.gz), as (D, H, W) float32.

    Raises:
        ValueError: the file is not a NIfTI-1 file of a volume of numbers.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    order = next((o for o in "<>" if np.frombuffer(data[:4], f"{o}i4")[0] == 348), None)
    if order is None:
        raise ValueError(f"{path}: not a NIfTI-1 file")
    axes, *sizes = np.frombuffer(data[40:56], f"{order}i2").tolist()
    code = int(np.frombuffer(data[70:72], f"{order}i2")[0])
    offset = int(np.frombuffer(data[108:112], f"{order}f4")[0])
    slope, intercept = np.frombuffer(data[112:120], f"{order}f4")
    sizes = [n for n in sizes[:axes] if n > 1]
    if len(sizes) != 3 or code not in NIFTI_DTYPES:
        raise ValueError(f"{path}: {sizes} of type {code} is not a volume of numbers")
    values = np.frombuffer(data, order + NIFTI_DTYPES[code], int(np.prod(sizes)), offset)
    volume = values.reshape(sizes[::-1]).astype(np.float32)
    return volume * slope + intercept if slope not in (0, 1) else volume


def noisy_unary(labels: Tensor, classes: int, noise: float, seed: int = 0) -> Tensor:
    """Returns energies (classes, D, H, W) of a simulated classifier.

    Its logits are 1 at the true label and 0 elsewhere plus noise / 2 of each voxel's own and
    noise / 2 that varies smoothly, normally distributed.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = F.one_hot(labels, classes).movedim(-1, 0).float()
    own = torch.randn(logits.shape, generator=generator)
    coarse = torch.randn(1, classes, *(max(2, n // 8) for n in labels.shape), generator=generator)
    smooth = F.interpolate(coarse, labels.shape, mode="trilinear", align_corners=True)[0]
    return -F.log_softmax(2 * (logits + noise * (own + smooth / smooth.std()) / 2), 0)


def dice(predicted: Tensor, truth: Tensor, classes: int) -> list[float]:
    """Returns Dice, 2 |A and B| / (|A| + |B|), of each class."""
    result = []
    for k in range(classes):
        a, b = predicted == k, truth == k
        result.append((2 * (a & b).sum() / (a.sum() + b.sum())).item())
    return result


def run_volume(options: argparse.Namespace) -> None:
    """Chooses parameters on the lower half of the slices, prints Dice of the upper half."""
    image = torch.from_numpy(read_nifti(options.image))
    truth = torch.from_numpy(read_nifti(options.labels)).long()
    image *= 255 / float(np.quantile(image.numpy(), 0.999))
    unary = noisy_unary(truth, len(TISSUES), options.noise)
    half = truth.shape[0] // 2
    halves = {"lower": slice(0, half), "upper": slice(half, None)}

    def result(parameters: Parameters | None, part: slice) -> list[float]:
        labels = unary[:, part].argmin(0)
        if parameters is not None:
            labels = fastseg.dense_crf(
                unary[None, :, part],
                image[None, None, part],
                parameters.terms(),
                iterations=options.iterations,
                quality=options.quality,
            )[0].argmax(0)
        return dice(labels, truth[part], len(TISSUES))[1:]

    print("mean Dice of the lower half with")
    chosen = best(VOLUME_GRID, lambda parameters: np.mean(result(parameters, halves["lower"])))
    print(
        f"\nupper half of {tuple(truth.shape)}, noise {options.noise:g}, quality {options.quality}"
    )
    for name, parameters in (("noisy unary", None), (f"CRF ({chosen})", chosen)):
        values = zip(TISSUES[1:], result(parameters, halves["upper"]), strict=True)
        print(f"{name:<34} " + "  ".join(f"{tissue} {100 * v:.2f}" for tissue, v in values))


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quality", choices=("compat", "high", "exact"), default="high")
    parser.add_argument("--threads", type=int, default=2)
    parts = parser.add_subparsers(required=True, metavar="voc|volume")
    voc = parts.add_parser("voc")
    voc.add_argument("--data", type=Path, required=True, help="folder with train.txt and val.txt")
    voc.add_argument("--weights", type=Path, required=True, help="of benchmarks.deeplab_mobilenet")
    voc.add_argument("--figure", type=Path, help="trimap curve; needs matplotlib")
    voc.set_defaults(run=run_voc, iterations=10)
    volume = parts.add_parser("volume")
    volume.add_argument("--image", type=Path, required=True, help="NIfTI-1 volume")
    volume.add_argument("--labels", type=Path, required=True, help="NIfTI-1 volume of 0, 1, 2")
    volume.add_argument("--noise", type=float, default=0.6, help="default: %(default)s")
    volume.set_defaults(run=run_volume, iterations=5)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    options.run(options)


if __name__ == "__main__":
    main()
