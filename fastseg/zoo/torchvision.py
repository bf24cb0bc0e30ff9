"""torchvision's segmentation models: github.com/pytorch/vision.

Its deeplabv3_resnet50, deeplabv3_resnet101, fcn_resnet50 and fcn_resnet101 load, with or without
auxiliary head: fastseg's keys are theirs.
"""

from fastseg.zoo.source import Layout, Preprocessing, Source, same

# These are the builders' defaults, in full.
OPTIONS = {"output_stride": 8, "dilation_style": "torchvision", "align_corners": False}
RENAMES = same("backbone", "classifier", "aux_classifier")

SOURCE = Source(
    name="torchvision",
    what="torchvision's deeplabv3_resnet* and fcn_resnet*",
    preprocessing=Preprocessing(),
    layouts=(
        Layout(
            model="deeplabv3",
            marks=(r"classifier\.0\.convs\.0\.0\.weight", r"classifier\.4\.weight"),
            renames=RENAMES,
            options={**OPTIONS, "atrous_rates": (12, 24, 36)},
        ),
        Layout(
            model="fcn",
            marks=(r"backbone\..*", r"classifier\.0\.weight", r"classifier\.4\.weight"),
            renames=RENAMES,
            options=OPTIONS,
        ),
    ),
    refused={
        r"backbone\.\d+\..*": "fastseg has no MobileNetV3, the backbone of its"
        " *_mobilenet_v3_large",
    },
)
