"""VainF's DeepLabV3Plus-Pytorch: github.com/VainF/DeepLabV3Plus-Pytorch.

Its deeplabv3 and deeplabv3plus load, on ResNets and MobileNetV2, the latter also with
``--separable_conv``. The output stride is that of its published weights, 16; give
``output_stride=8`` for those trained with 8. Its MobileNetV2 pads the input of a block, not the
output of the block's first 1x1 convolution. Its decoder has the low-level features before the
ASPP's.
"""

from torch import Tensor

from fastseg.zoo.source import Layout, Preprocessing, Source, aspp, moved, same

OPTIONS = {"output_stride": 16, "dilation_style": "torchvision", "align_corners": False}
MOBILE = {"mobilenet_v2": {"pad_input": True}}
BACKBONE = {
    **moved(r"backbone\.(?:low|high)_level_features", "backbone.features"),
    **same("backbone"),
}


def _low_level_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts the decoder's input channels into fastseg's order."""
    low_level = state.get("classifier.project.0.weight")
    if low_level is None:
        return state
    n = low_level.shape[0]
    # The values are the axes of the input channels: of a convolution, or of a separable one's two.
    axes = {"0.weight": 1, "0.0.weight": 0, "0.1.weight": 1}
    keys = {f"classifier.convs.0.{key}": axis for key, axis in axes.items()}
    return {key: t.roll(-n, keys[key]) if key in keys else t for key, t in state.items()}


SOURCE = Source(
    name="vainf",
    what="VainF's DeepLabV3Plus-Pytorch",
    preprocessing=Preprocessing(),
    layouts=(
        Layout(
            model="deeplabv3plus",
            marks=(
                r"classifier\.aspp\.convs\.0\.0\.weight",
                r"classifier\.classifier\.3\.weight",
            ),
            renames={
                **BACKBONE,
                **aspp("vainf", r"classifier\.aspp", "classifier.aspp"),
                **same("classifier.project"),
                **moved(r"classifier\.classifier\.0\.body", "classifier.convs.0.0"),
                **moved(r"classifier\.classifier\.0", "classifier.convs.0.0"),
                **moved(r"classifier\.classifier\.1", "classifier.convs.0.1"),
                **moved(r"classifier\.classifier\.3", "classifier.score"),
            },
            options={**OPTIONS, "decoder_convs": 1},
            convert=_low_level_last,
            backbone_options=MOBILE,
        ),
        Layout(
            model="deeplabv3",
            marks=(r"classifier\.classifier\.0\.convs\.0\.0\.weight",),
            renames={**BACKBONE, **moved(r"classifier\.classifier", "classifier")},
            options=OPTIONS,
            backbone_options=MOBILE,
        ),
    ),
    refused={
        r"backbone\.block1\..*": "its Xception strides and pads otherwise than fastseg's",
        r"backbone\.stage4\..*": "fastseg has no HRNet",
    },
)
