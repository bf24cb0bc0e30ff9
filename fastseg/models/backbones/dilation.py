"""Strides replaced by dilation, so that a classifier's features stay dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DILATION_STYLES = ("torchvision", "paper")


class Stage(NamedTuple):
    """How a stage of a backbone walks over its input."""

    stride: int  # of its first block
    first_dilation: int  # of its first block
    dilation: int  # of the other blocks


def dilated_stages(
    strides: Sequence[int], output_stride: int, dilation_style: str, input_stride: int = 1
) -> list[Stage]:
    """The stages of a backbone that stops striding at ``output_stride``.

    A stage that would stride further has stride 1, and what follows is dilated by the stride that
    it lost (Chen et al. 2017, arXiv 1706.05587, section 3.1). In which block that begins, projects
    differ: the weights fit both, the outputs do not.

    Args:
        strides: of each stage.
        output_stride: of the last stage's output to the image.
        dilation_style: "torchvision", also TensorFlow's: a stage's first block keeps the dilation
            before it, since its input is the one that it would stride over; "paper", also
            segmentation_models_pytorch's: the whole stage is dilated.
        input_stride: of the first stage's input to the image.

    Raises:
        ValueError: an output stride that the strides do not reach, or an unknown style.
    """
    if dilation_style not in DILATION_STYLES:
        raise ValueError(f"dilation_style must be one of {DILATION_STYLES}, got {dilation_style!r}")
    reached = [input_stride]
    for stride in strides:
        reached.append(reached[-1] * stride)
    if output_stride not in reached:
        raise ValueError(
            f"output_stride must be one of {sorted(set(reached))}, got {output_stride!r}"
        )
    stages, dilation = [], 1
    for before, stride in zip(reached, strides, strict=False):
        previous = dilation
        if before * stride > output_stride:
            dilation, stride = dilation * stride, 1
        first = previous if dilation_style == "torchvision" else dilation
        stages.append(Stage(stride, first, dilation))
    return stages
