"""segmentation_models_pytorch: github.com/qubvel-org/segmentation_models.pytorch.

DeepLabV3 and DeepLabV3Plus load, on ResNets of bottlenecks and MobileNetV2, with the arguments'
defaults. Its Unet, FPN and so on have decoders that fastseg does not have. The mean and the
standard deviation are those of its ImageNet encoders.
"""

from fastseg.zoo.source import Layout, Preprocessing, Source, aspp, moved

BACKBONE = moved(r"encoder", "backbone")
SCORE = r"segmentation_head\.0"
# All blocks of a dilated stage are dilated; features and scores are resized corner to corner.
OPTIONS = {"atrous_rates": (12, 24, 36), "dilation_style": "paper", "align_corners": True}

SOURCE = Source(
    name="smp",
    what="segmentation_models_pytorch's DeepLabV3 and DeepLabV3Plus",
    preprocessing=Preprocessing(),
    layouts=(
        Layout(
            model="deeplabv3plus",
            marks=(r"encoder\..*", r"decoder\.block2\..*"),
            renames={
                **BACKBONE,
                **aspp("smp", r"decoder\.aspp\.0", "classifier.aspp"),
                **moved(r"decoder\.aspp\.1", "classifier.aspp_conv.0"),
                **moved(r"decoder\.aspp\.2", "classifier.aspp_conv.1"),
                **moved(r"decoder\.block1", "classifier.project"),
                **moved(r"decoder\.block2", "classifier.convs.0"),
                **moved(SCORE, "classifier.score"),
            },
            options={**OPTIONS, "output_stride": 16, "decoder_convs": 1, "aspp_conv": True},
        ),
        Layout(
            model="deeplabv3",
            # Before version 0.4 the decoder was a sequence, whose first key is "decoder.0".
            marks=(r"encoder\..*", r"decoder\.(?:aspp|0)\.convs\.0\.0\.weight"),
            renames={
                **BACKBONE,
                **aspp("smp", r"decoder\.(?:aspp|0)", "classifier.0"),
                **moved(r"decoder\.(?:conv|1)", "classifier.1"),
                **moved(r"decoder\.(?:bn|2)", "classifier.2"),
                **moved(SCORE, "classifier.4"),
            },
            options={**OPTIONS, "output_stride": 8},
        ),
    ),
    refused={
        r"decoder\.(?:blocks|center|p\d|pab|fpa|gau\w*|psp|fpn\w*|seg_blocks)\..*": (
            "of its decoders fastseg has those of DeepLabV3 and DeepLabV3Plus alone"
        )
    },
)
