"""What all networks have in common: output at the input's size, auxiliary head, CRF, backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg._core.pairwise import PairwiseBilateral, PairwiseGaussian
from fastseg.models._layers import BatchNorm2d, Conv2d, conv_bn_act, resize, use_backend
from fastseg.nn import DenseCRF

# Of torchvision's weights: what an image of 0 to 1 was normalised by.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CRFS = ("post", "layer")
# Chen et al. 2018 (arXiv 1606.00915), section 4.1: weights, bandwidths, iterations.
CRF_TERMS = (
    PairwiseGaussian(sxy=1, compatibility=3),
    PairwiseBilateral(sxy=67, srgb=3, compatibility=4),
)
CRF_ITERATIONS = 10


class SegmentationModel(nn.Module):
    """From an image to the logits of every pixel.

    A subclass gives :meth:`scores`. The names of its parts are torchvision's: ``backbone``,
    ``classifier``, ``aux_classifier``.

    Args:
        num_classes: channels of the output.
        in_channels: of the image.
        align_corners: how the scores are resized to the image: False as torchvision, True as
            TensorFlow, Caffe and segmentation_models_pytorch.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, align_corners: bool = False):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.align_corners = align_corners
        self.aux_classifier: nn.Module | None = None
        self.crf: DenseCRF | None = None

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """The logits "out", and "aux" with an auxiliary head, at any resolution."""
        raise NotImplementedError

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Logits (N, num_classes, H, W); with an auxiliary head a dict of such, "out" and "aux".

        Args:
            x: (N, in_channels, H, W), normalised.
            image: (N, 3, H, W) in 0 to 255, for the CRF; default: x, taken to be normalised with
                torchvision's mean and standard deviation.

        Raises:
            ValueError: x of another shape.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        out = {
            name: self.at_input_size(scores, x.shape[-2:])
            for name, scores in self.scores(x).items()
        }
        if self.crf is not None and (_trains(self.crf) or not self.training):
            out["out"] = self._refined(out["out"], _denormalised(x) if image is None else image)
        return out["out"] if self.aux_classifier is None else out

    def at_input_size(self, scores: Tensor, size: torch.Size) -> Tensor:
        """The scores of every pixel of an image of that size."""
        return resize(scores, size, self.align_corners)

    def _refined(self, logits: Tensor, image: Tensor) -> Tensor:
        """The logarithm of the CRF's probabilities: logits, of which a softmax gives them back."""
        return self.crf(-logits.float(), image, log=True).to(logits.dtype)


class FCNHead(nn.Sequential):
    """torchvision's: a 3x3 convolution to a quarter of the channels, dropout, the classes.

    The keys are those of its children: 0 and 1 the convolution and its batch norm, 4 the last
    convolution.
    """

    def __init__(self, in_channels: int, num_classes: int):
        hidden = max(1, in_channels // 4)
        super().__init__(
            Conv2d(in_channels, hidden, 3, padding=1, bias=False),
            BatchNorm2d(hidden),
            nn.Identity(),  # the ReLU, which runs with the batch norm
            nn.Dropout(0.1),
            Conv2d(hidden, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, num_classes, H, W) of x (N, in_channels, H, W)."""
        conv, bn, _, dropout, classify = self
        return classify(dropout(conv_bn_act(x, conv, bn, "relu")))


class BackboneModel(SegmentationModel):
    """A backbone's features, a classifier of the last ones, and an auxiliary one before them.

    Args:
        backbone: from an image to a dict of features, at least "out" and "aux".
        classifier: from the features "out" to logits.
        num_classes: channels of the output.
        aux: whether to add an :class:`FCNHead` on the features "aux".
        in_channels: of the image.
        align_corners: as in :class:`SegmentationModel`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        num_classes: int,
        *,
        aux: bool = False,
        in_channels: int = 3,
        align_corners: bool = False,
    ):
        super().__init__(num_classes, in_channels=in_channels, align_corners=align_corners)
        self.backbone = backbone
        self.classifier = classifier
        if aux:
            self.aux_classifier = FCNHead(backbone.channels["aux"], num_classes)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Logits "out" at the classifier's resolution, "aux" at that of its features."""
        features = self.backbone(x)
        scores = {"out": self.classify(features)}
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(features["aux"])
        return scores

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        """The logits of the features."""
        return self.classifier(features["out"])


def main_logits(output: Tensor | dict[str, Tensor]) -> Tensor:
    """What a network of this package or of torchvision says of the image, without "aux"."""
    return output["out"] if isinstance(output, dict) else output


def finish(
    model: SegmentationModel, *, crf: str | DenseCRF | None, backend: str
) -> SegmentationModel:
    """Add the CRF and choose the backend: the options that all builders have.

    Args:
        model: a network.
        crf: None; "post": fixed, after the network in evaluation alone, with the parameters that
            DeepLab v2 found; "layer": trained with the network (CRF as RNN); or a
            :class:`fastseg.nn.DenseCRF`, which runs in training if any of its parameters is
            trainable.
        backend: "fastseg" or "torch"; the CRF is fastseg's on both.

    Raises:
        ValueError: another crf or backend.
    """
    if isinstance(crf, str):
        if crf not in CRFS:
            raise ValueError(f"crf must be None, one of {CRFS} or a DenseCRF, got {crf!r}")
        if crf == "post":
            crf = DenseCRF(model.num_classes, CRF_TERMS, iterations=CRF_ITERATIONS, trainable=())
            crf.requires_grad_(False)
        else:
            crf = DenseCRF(model.num_classes)
    if crf is not None:
        model.crf = crf
    use_backend(model, backend)
    return model


def _trains(crf: nn.Module) -> bool:
    return any(p.requires_grad for p in crf.parameters())


def _denormalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
    return F.relu((x.detach() * std + mean) * 255)
