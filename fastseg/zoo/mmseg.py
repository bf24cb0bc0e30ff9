"""OpenMMLab's mmsegmentation: github.com/open-mmlab/mmsegmentation.

Its DeepLabV3 and DeepLabV3+ load, on ResNetV1c and ResNet, in the configurations ``*_r50-d8*`` and
``*_r101-d8*``. The projection of its ASPP is 3x3, and the image pooling's channels come first.
"""

from functools import partial

from fastseg.nn.aspp_keys import pooling_last
from fastseg.zoo.source import Layout, Preprocessing, Source, aspp, conv_bn, moved, same

BACKBONE = {
    # The stem is a convolution, its batch norm and a ReLU, three times.
    **conv_bn(r"backbone\.stem", "backbone.stem.0", ("0", "1")),
    **conv_bn(r"backbone\.stem", "backbone.stem.1", ("3", "4")),
    **conv_bn(r"backbone\.stem", "backbone.stem.2", ("6", "7")),
    **same("backbone"),
}
AUX = {
    **moved(r"auxiliary_head\.convs\.0\.conv", "aux_classifier.0"),
    **moved(r"auxiliary_head\.convs\.0\.bn", "aux_classifier.1"),
    **moved(r"auxiliary_head\.conv_seg", "aux_classifier.4"),
}
OPTIONS = {
    "output_stride": 8,
    "atrous_rates": (12, 24, 36),
    "dilation_style": "torchvision",
    "align_corners": False,
    "project_kernel_size": 3,
}


def _separable(theirs: str, ours: str) -> dict[str, str]:
    """Renames a depthwise and a pointwise convolution, each with its batch norm."""
    return {
        **conv_bn(rf"{theirs}\.depthwise_conv", f"{ours}.0.0"),
        **moved(rf"{theirs}\.pointwise_conv\.conv", f"{ours}.0.1"),
        **moved(rf"{theirs}\.pointwise_conv\.bn", f"{ours}.1"),
    }


SOURCE = Source(
    name="mmseg",
    what="mmsegmentation's DeepLabV3 and DeepLabV3+ on ResNets",
    preprocessing=Preprocessing(
        tuple(m / 255 for m in (123.675, 116.28, 103.53)),
        tuple(s / 255 for s in (58.395, 57.12, 57.375)),
    ),
    layouts=(
        Layout(
            model="deeplabv3plus",
            marks=(r"decode_head\.sep_bottleneck\..*",),
            renames={
                **BACKBONE,
                **aspp("mmseg", r"decode_head", "classifier.aspp"),
                **conv_bn(r"decode_head\.c1_bottleneck", "classifier.project"),
                **_separable(r"decode_head\.sep_bottleneck\.0", "classifier.convs.0"),
                **_separable(r"decode_head\.sep_bottleneck\.1", "classifier.convs.1"),
                **moved(r"decode_head\.conv_seg", "classifier.score"),
                **AUX,
            },
            options={**OPTIONS, "decoder_convs": 2, "depthwise_batch_norm": True},
            convert=partial(pooling_last, prefix="classifier.aspp."),
        ),
        Layout(
            model="deeplabv3",
            marks=(r"decode_head\.aspp_modules\..*",),
            renames={
                **BACKBONE,
                **aspp("mmseg", r"decode_head", "classifier.0"),
                **moved(r"decode_head\.conv_seg", "classifier.1"),
                **AUX,
            },
            options={**OPTIONS, "head_conv": False},
            convert=partial(pooling_last, prefix="classifier.0."),
        ),
    ),
    refused={
        r"backbone\.conv1\.conv\.weight": "its MobileNetV2 dilates only a stage's first block",
        r"backbone\.encoder\..*": "its U-Net upsamples with a 1x1 convolution and batch norm",
        r"decode_head\.(?:convs|conv_cat)\..*": "its FCN has another head than torchvision's, which"
        " is fastseg's",
    },
)
