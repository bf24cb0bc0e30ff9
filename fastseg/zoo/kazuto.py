"""kazuto1011's DeepLab v2: github.com/kazuto1011/deeplab-pytorch.

It is DeepLab v2 on a ResNet, alone or at three scales of which the maximum counts (``base.*``),
converted from the authors' Caffe models. Its input is blue, green and red in 0 to 255 less the
mean. The original gives logits at stride 8, which its script resizes to the image, like the model
here. Rates are those of its configurations and published weights, 6, 12, 18 and 24. DeepLabV2S has
the same keys but the rates 3, 6, 9 and 12, which makes it another network.
"""

import re
from collections.abc import Callable

from fastseg.zoo.source import Layout, Source, aspp, caffe, moved


def _block(theirs: str, ours: str) -> tuple[str, Callable[[re.Match], str]]:
    """Renames a block: their layers count the stem, and their blocks count from 1."""

    def name(match: re.Match) -> str:
        layer, block = int(match["layer"]) - 1, int(match["block"]) - 1
        return f"backbone.layer{layer}.{block}.{ours}.{match['rest']}"

    return rf"layer(?P<layer>[2-5])\.block(?P<block>\d+)\.{theirs}\.(?P<rest>.*)", name


BLOCK = dict(
    _block(rf"{theirs}\.{kind}", ours)
    for theirs, names in {
        "reduce": ("conv1", "bn1"),
        "conv3x3": ("conv2", "bn2"),
        "increase": ("conv3", "bn3"),
        "shortcut": ("downsample.0", "downsample.1"),
    }.items()
    for kind, ours in zip(("conv", "bn"), names, strict=True)
)
RENAMES = {
    **moved(r"layer1\.conv1\.conv", "backbone.conv1"),
    **moved(r"layer1\.conv1\.bn", "backbone.bn1"),
    **BLOCK,
    **aspp("kazuto", "aspp", "classifier"),
}


SOURCE = Source(
    name="kazuto",
    what="kazuto1011's DeepLab v2",
    preprocessing=caffe(104.008, 116.669, 122.675),
    layouts=tuple(
        Layout(
            model="deeplabv2",
            marks=(rf"{prefix}layer1\.conv1\.conv\.weight", rf"{prefix}aspp\.c0\.weight"),
            renames={prefix + theirs: ours for theirs, ours in RENAMES.items()},
            options={
                "variant": "aspp_l",
                "dilation_style": "paper",
                "align_corners": False,
                "scales": scales,
            },
        )
        for prefix, scales in {"": (1.0,), r"base\.": (0.5, 0.75, 1.0)}.items()
    ),
    refused={
        r"(?:base\.)?aspp\.stages\..*": "of its networks only DeepLab v2 has published weights, and"
        " only that loads",
    },
)
