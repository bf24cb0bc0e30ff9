"""Export of a segmenter: its file, the card beside it, and what came of running it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastseg._core.atomic import atomic_write
from fastseg._core.json_values import without_nan
from fastseg._core.version import __version__
from fastseg.export.compare import Comparison, compare
from fastseg.export.deployed import Deployed
from fastseg.export.errors import ExportError
from fastseg.export.formats import FORMATS, Format
from fastseg.export.onnx_files import LEAST_OPSET
from fastseg.export.program import INPUT, capture, least_size
from fastseg.segment import Segmenter

OTHER_SIZE = (13, 6)
"""Pixels that are added to height and width for another size at which a dynamic file is run."""


@dataclass(frozen=True)
class Recipe:
    """What an exported file is to be.

    Args:
        format: a name of ``fastseg.export.FORMATS``.
        size: height and width of the input, pixels; of a dynamic one the size it is tried at.
        dynamic: whether batch, height and width are free; else the batch is 1.
        normalise: whether it takes uint8 RGB pictures (N, H, W, 3), or float32 ones with as many
            channels as the weights' files have, and normalises them; else it takes float32
            (N, channels, H, W) that is normalised.
        class_map: whether it returns classes (N, H, W); else logits (N, classes, H, W).
        opset: version of ONNX's operators.

    Raises:
        ValueError: an unknown format, or a value out of range.
    """

    format: str
    size: tuple[int, int]
    dynamic: bool = False
    normalise: bool = False
    class_map: bool = False
    opset: int = LEAST_OPSET

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        if len(self.size) != 2 or min(self.size) < 2:
            raise ValueError(f"size must be two sides of at least 2 pixels, got {self.size}")
        if self.opset < LEAST_OPSET:
            raise ValueError(f"opset must be at least {LEAST_OPSET}, got {self.opset}")

    @property
    def output(self) -> str:
        """Name of the file's only output."""
        return "classes" if self.class_map else "logits"


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: the file.
        card: the JSON file beside it, which says what it takes and returns.
        comparison: what came of running it; None where its runtime is not installed.
    """

    path: Path
    card: Path
    comparison: Comparison | None


def export_segmenter(
    segmenter: Segmenter,
    path: str | Path,
    recipe: Recipe,
    *,
    weights: Mapping[str, str] | None = None,
) -> Exported:
    """Writes a segmenter's network to a file, describes it in a card, runs it and compares.

    Args:
        segmenter: a network of torch's own ops, on the CPU: ``Segmenter.load(...,
            backend="torch")``.
        path: the file, whose suffix is the format's. The card is named after it: FILE.json.
        recipe: what the file is to be.
        weights: what the card says of the weights, such as their file and its sha256.

    Raises:
        ImportError: a package that writes the format is not installed; pip's command is named.
        ExportError: the network cannot be exported in this way.
        ValueError: the path does not end as the format's files do; normalise for a network of
            other than three channels whose weights do not say what they are.
        OSError: the file cannot be written.
    """
    path, form = Path(path), FORMATS[recipe.format]
    check_path(path, recipe.format)
    form.check()
    module = Deployed(segmenter, normalise=recipe.normalise, class_map=recipe.class_map).eval()
    example = module.random_input(2 if recipe.dynamic else 1, *recipe.size)
    with torch.no_grad():
        try:
            output = module(example)
        except ValueError as error:  # the network's own check of its input, which names the size
            raise ExportError(f"size {recipe.size}: {error}") from error
    program = capture(module, example, dynamic=recipe.dynamic)
    details = {"module": module, "output": recipe.output, "dynamic": recipe.dynamic}
    form.write(program, path, **form.chosen({**details, "opset": recipe.opset}))

    inputs = [module.random_input(1, *recipe.size)]
    if recipe.dynamic:
        other = (side + more for side, more in zip(recipe.size, OTHER_SIZE, strict=True))
        inputs.append(module.random_input(2, *other))
    comparison = compare(module, form, path, inputs)
    contents = {
        **_described(segmenter, module, recipe, example, output),
        "file": path.name,
        "least_size": list(least_size(program, module)) if recipe.dynamic else None,
        "weights": dict(weights or {}),
        "comparison": comparison and asdict(comparison),
    }
    card = path.with_name(f"{path.name}.json")
    with atomic_write(card) as file:
        text = json.dumps(without_nan(contents), indent=1, ensure_ascii=False) + "\n"
        # A name may hold what UTF-8 does not, a lone surrogate, whose escape is JSON's.
        file.write(text.encode(errors="backslashreplace"))
    return Exported(path, card, comparison)


def check_path(path: Path, name: str) -> Format:
    """Returns the format of a name, whose files end as the path does.

    Raises:
        ValueError: the path ends otherwise.
        FileNotFoundError: its folder is not there.
    """
    form = FORMATS[name]
    if path.suffix != form.suffix:
        raise ValueError(f"{path}: a file of the format {name} ends in {form.suffix}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    return form


def _described(
    segmenter: Segmenter,
    module: Deployed,
    recipe: Recipe,
    example: torch.Tensor,
    output: torch.Tensor,
) -> dict[str, Any]:
    """Returns what a card says of the network, and of its input and output."""
    sides = dict(zip(("height", "width"), recipe.size, strict=True))
    known = {"batch": "batch" if recipe.dynamic else 1}
    known |= {name: name if recipe.dynamic else side for name, side in sides.items()}
    # After valid convolutions an output has other sides than the input, which depend on it.
    ends = [
        known[name] if not recipe.dynamic or side == sides[name] else None
        for name, side in zip(sides, output.shape[-2:], strict=True)
    ]
    if not recipe.dynamic:
        ends = list(output.shape[-2:])
    middle = [] if recipe.class_map else [output.shape[1]]
    form = segmenter.form
    stored = "picture / 255" if form is None else "picture"
    takes = f"({stored} - mean) / std"
    if recipe.normalise:
        takes = "pictures, 0 to 255" if form is None else "pictures, the values that files store"
    returns = "the class of each pixel" if recipe.class_map else "logits of each class and pixel"
    return {
        "format": recipe.format,
        "model": segmenter.name,
        "size": list(recipe.size),
        "dynamic": recipe.dynamic,
        "short_side": segmenter.short_side,
        "opset": recipe.opset if recipe.format == "onnx" else None,
        "inputs": [
            {
                "name": INPUT,
                "dtype": str(example.dtype).removeprefix("torch."),
                "shape": [known.get(axis, axis) for axis in module.axes],
                "channels": _channels(segmenter, recipe),
                "what": takes,
            }
        ],
        "outputs": [
            {
                "name": recipe.output,
                "dtype": str(output.dtype).removeprefix("torch."),
                "shape": [known["batch"], *middle, *ends],
                "what": returns,
            }
        ],
        "classes": list(segmenter.classes),
        "palette": [list(colour) for colour in segmenter.palette],
        "mean": list(segmenter.mean),
        "std": list(segmenter.std),
        "made_by": {"fastseg": __version__, "torch": torch.__version__},
    }


def _channels(segmenter: Segmenter, recipe: Recipe) -> str | dict[str, Any]:
    """Returns what a card says of the input's channels, and for which files of pictures."""
    if segmenter.form is not None:
        return segmenter.form.as_metadata()
    return "RGB" if recipe.normalise else segmenter.channels
