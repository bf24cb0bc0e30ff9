"""Dilation in place of strides, by which a classifier's features stay dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

DILATION_STYLES = ("torchvision", "paper")


class Stage(NamedTuple):
    """Stride and rates of a backbone's stage.

    Attributes:
        stride: stride of the first block.
        first_dilation: rate of the first block.
        dilation: rate of the other blocks.
    """

    stride: int
    first_dilation: int
    dilation: int


def dilated_stages(
    strides: Sequence[int], output_stride: int, dilation_style: str, input_stride: int = 1
) -> list[Stage]:
    """Returns the stages of a backbone that stops striding at ``output_stride``.

    A stage that would stride further has stride 1, and the layers after it are dilated by the
    stride that it lost (Chen et al. 2017, arXiv 1706.05587, section 3.1). Projects differ in the
    block in which that begins: the weights fit both, the outputs do not.

    Args:
        strides: original stride of each stage.
        output_stride: stride of the last stage's output on the image.
        dilation_style: "torchvision", which is TensorFlow's style too, where a stage's first block
            keeps the rate before it, since it would have strided over its input; or "paper", which
            is segmentation_models_pytorch's too, where the whole stage is dilated.
        input_stride: stride of the first stage's input on the image.

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
