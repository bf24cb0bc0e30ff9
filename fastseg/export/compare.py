"""Comparison of an exported file with the network that it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from fastseg.export.deployed import Deployed
from fastseg.export.errors import first_line, is_installed, quiet
from fastseg.export.formats import Format

TOLERANCE = 1e-3
"""Largest difference of logits that rounding explains, relative to the largest logit."""


@dataclass(frozen=True)
class Comparison:
    """What came of running a file.

    Attributes:
        runtime: the package that ran it, and its version.
        shapes: the inputs' shapes.
        difference: the largest difference of a logit, relative to the largest; of class maps how
            far the logit of a pixel's class lies below the highest, relative to the largest.
        pixels: share of the pixels with another class; None for logits.
        problem: why the file disagrees; None where it agrees.
    """

    runtime: str
    shapes: list[tuple[int, ...]]
    difference: float = 0.0
    pixels: float | None = None
    problem: str | None = None

    def __str__(self) -> str:
        shapes = " and ".join("x".join(map(str, shape)) for shape in self.shapes)
        if self.problem is not None:
            return f"{self.runtime} on {shapes}: {self.problem}"
        if self.pixels is None:
            return (
                f"{self.runtime} on {shapes}: agrees, the largest difference is "
                f"{self.difference:.1e} of the largest logit"
            )
        if not self.pixels:
            return f"{self.runtime} on {shapes}: agrees, every pixel has the same class"
        return (
            f"{self.runtime} on {shapes}: agrees, {self.pixels:.4%} of the pixels have another "
            f"class, whose logit is at most {self.difference:.1e} of the largest lower"
        )


def compare(
    module: Deployed, form: Format, path: Path, inputs: Sequence[Tensor]
) -> Comparison | None:
    """Runs a file and the network that it was made of; None where its runtime is not installed."""
    if not is_installed(form.runtime):
        return None
    runtime = f"{form.runtime} {version(form.runtime)}"
    shapes = [tuple(image.shape) for image in inputs]
    try:
        with torch.no_grad(), quiet():
            run = form.load(path)
            found = [run(image) for image in inputs]
    except Exception as error:  # a runtime that cannot run the file says so with nearly anything
        return Comparison(runtime, shapes, problem=f"cannot run the file: {first_line(error)}")
    return compare_outputs(module, runtime, inputs, found)


@torch.no_grad()
def compare_outputs(
    module: Callable[[Tensor], Tensor],
    runtime: str,
    inputs: Sequence[Tensor],
    found: Sequence[Tensor],
) -> Comparison:
    """Compares the outputs of a file with the network's."""
    shapes = [tuple(image.shape) for image in inputs]
    difference, other, pixels = 0.0, 0, 0
    for image, output in zip(inputs, found, strict=True):
        logits = module.logits(image)
        expected = module(image)
        if (output.shape, output.dtype) != (expected.shape, expected.dtype):
            return Comparison(
                runtime,
                shapes,
                problem=f"returns {output.dtype} {tuple(output.shape)}, "
                f"the network {expected.dtype} {tuple(expected.shape)}",
            )
        if not module.class_map:
            distance = (output - logits).abs()
        elif output.max() >= logits.shape[1]:
            return Comparison(runtime, shapes, problem=f"returns the class {int(output.max())}")
        else:
            # Rounding may decide between two classes with nearly the same logit, and no others.
            distance = logits.amax(1) - logits.gather(1, output.long()[:, None])[:, 0]
            other += int((output != expected).sum())
            pixels += output.numel()
        worst = float(distance.max() / logits.abs().max().clamp_min(1e-30))
        if not worst <= TOLERANCE:  # also of NaN
            return Comparison(
                runtime,
                shapes,
                worst,
                problem=f"disagrees with the network by {worst:.1e} of the largest logit "
                f"(at most {TOLERANCE:g})",
            )
        difference = max(difference, worst)
    return Comparison(runtime, shapes, difference, other / pixels if module.class_map else None)
