"""wkentaro's pytorch-fcn: github.com/wkentaro/pytorch-fcn.

Its FCN32s, FCN16s and FCN8s on VGG16 load. They are padded by 100 pixels, like the authors' Caffe
models, from which its published weights come. Input is blue, green and red in 0 to 255 less the
mean. FCN8sAtOnce scales the poolings' features by 0.01 and 0.0001 and has the keys of FCN8s, for
which it would be taken: multiply ``score_pool4.weight`` and ``score_pool3.weight`` by these factors
first.
"""

from fastseg.models.backbones.vgg import BLOCKS
from fastseg.zoo.source import Layout, Source, caffe, moved

FIRST = (0, 5, 10, 17, 24)
"""torchvision's number of each block's first convolution; each has a ReLU, a block a pooling."""

COMMON = {
    **{
        pattern: new
        for block, (first, convolutions) in enumerate(zip(FIRST, BLOCKS, strict=True), start=1)
        for i in range(convolutions)
        for pattern, new in moved(
            f"conv{block}_{i + 1}", f"backbone.features.{first + 2 * i}"
        ).items()
    },
    **moved("fc6", "fc.fc6"),
    **moved("fc7", "fc.fc7"),
    **moved("score_fr", "score"),
    **moved("score_pool4", "skip_scores.pool4"),
    **moved("score_pool3", "skip_scores.pool3"),
}

SOURCE = Source(
    name="wkentaro",
    what="wkentaro's pytorch-fcn",
    preprocessing=caffe(104.00698793, 116.66876762, 122.67891434),
    layouts=tuple(
        Layout(
            model=model,
            marks=(r"conv1_1\.weight", rf"{upsamplings[-1]}\.weight"),
            renames={
                **COMMON,
                **{
                    pattern: new
                    for i, name in enumerate(upsamplings)
                    for pattern, new in moved(name, f"upsample.{i}").items()
                },
            },
        )
        for model, upsamplings in {
            "fcn8s": ("upscore2", "upscore_pool4", "upscore8"),
            "fcn16s": ("upscore2", "upscore16"),
            "fcn32s": ("upscore",),
        }.items()
    ),
)
