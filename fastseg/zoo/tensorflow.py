"""TensorFlow's DeepLab v3 for phones, as converted to PyTorch: github.com/tensorflow/models.

The network is MobileNetV2 with torchvision's names, and
``classifier.{image_pooling,aspp0,concat_projection,logits}``: an ASPP without atrous convolutions,
whose image pooling comes first. Images are in -1 to 1 and have 16k + 1 pixels. TensorFlow's own
files are not PyTorch's and are not read.
"""

from functools import partial

from fastseg.nn.aspp_keys import pooling_last
from fastseg.zoo.source import Layout, Preprocessing, Source, moved, same

SOURCE = Source(
    name="tensorflow",
    what="TensorFlow's DeepLab v3 on MobileNetV2, converted to PyTorch",
    preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    layouts=(
        Layout(
            model="deeplabv3",
            marks=(r"classifier\.concat_projection\.0\.weight",),
            renames={
                **same("backbone"),
                **moved(r"classifier\.image_pooling\.0", "classifier.0.convs.1.1"),
                **moved(r"classifier\.image_pooling\.1", "classifier.0.convs.1.2"),
                **moved(r"classifier\.aspp0", "classifier.0.convs.0"),
                **moved(r"classifier\.concat_projection", "classifier.0.project"),
                **moved(r"classifier\.logits", "classifier.1"),
            },
            options={
                "output_stride": 16,
                "atrous_rates": (),
                "dilation_style": "torchvision",
                "align_corners": True,
            },
            convert=partial(pooling_last, prefix="classifier.0."),
        ),
    ),
)
