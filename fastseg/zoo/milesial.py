"""milesial's U-Net: github.com/milesial/Pytorch-UNet.

It has transposed convolutions, or ``bilinear`` upsampling. Its checkpoints also hold
``mask_values``. An image is divided by 255 and not normalised.
"""

import re
from collections.abc import Callable

from fastseg.zoo.source import Layout, Preprocessing, Source, conv_bn, moved

UP = r"up(?P<number>\d+)"


def _up(ours: str) -> Callable[[re.Match], str]:
    """Renames an upsampling stage: theirs count from 1."""
    return lambda match: f"up.{int(match['number']) - 1}.{ours}.{match['rest']}"


def _double(theirs: str, ours: str) -> dict[str, str]:
    return {
        **conv_bn(rf"{theirs}\.double_conv", f"{ours}.conv1", ("0", "1")),
        **conv_bn(rf"{theirs}\.double_conv", f"{ours}.conv2", ("3", "4")),
    }


RENAMES = {
    **_double("inc", "down.0"),
    **_double(r"down(?P<number>\d+)\.maxpool_conv\.1", r"down.\g<number>"),
    rf"{UP}\.up\.(?P<rest>.*)": _up("up"),
    **{
        rf"{UP}\.conv\.double_conv\.{theirs}\.(?P<rest>.*)": _up(f"conv.{ours}")
        for theirs, ours in {
            "0": "conv1.0",
            "1": "conv1.1",
            "3": "conv2.0",
            "4": "conv2.1",
        }.items()
    },
    **moved(r"outc\.conv", "classifier"),
}

SOURCE = Source(
    name="milesial",
    what="milesial's Pytorch-UNet",
    preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    layouts=(Layout(model="unet", marks=(r"inc\.double_conv\.0\.weight",), renames=RENAMES),),
    refused={
        r"inc\.conv\.conv\.0\.weight": "in its versions before 2020 convolutions before batch norm"
        " have biases, for which fastseg's U-Net has no place",
    },
)
