"""Common parts of all networks: output at the input's size, auxiliary head, CRF and backend."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg._core.pairwise import PairwiseBilateral, PairwiseGaussian
from fastseg.models._layers import BatchNorm2d, Conv2d, conv_bn_act, resize, use_backend
from fastseg.nn import DenseCRF, UpsampleCrossEntropyLoss
from fastseg.ops import upsample_argmax

# torchvision's weights expect an image of 0 to 1 with this mean and standard deviation removed.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CRFS = ("post", "layer")
# The weights, bandwidths and iterations are those of Chen et al. 2018 (arXiv 1606.00915), section
# 4.1.
CRF_TERMS = (
    PairwiseGaussian(sxy=1, compatibility=3),
    PairwiseBilateral(sxy=67, srgb=3, compatibility=4),
)
CRF_ITERATIONS = 10
AUX_WEIGHT = 0.4
"""Weight of an auxiliary head's loss, from Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017,
section 3.3."""


Criterion = Callable[[Tensor, Tensor], Tensor]
"""The loss of logits of any size and a target."""


class SegmentationModel(nn.Module):
    """A network that computes the logits of every pixel of an image.

    A subclass defines :meth:`scores`. Its parts have torchvision's names: ``backbone``,
    ``classifier`` and ``aux_classifier``.

    Args:
        num_classes: number of output channels.
        in_channels: number of the image's channels.
        align_corners: how the scores are resized to the image: False in torchvision, True in
            TensorFlow, Caffe and segmentation_models_pytorch.

    Raises:
        ValueError: num_classes or in_channels is not positive.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, align_corners: bool = False):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.align_corners = align_corners
        self.aux_classifier: nn.Module | None = None
        self.crf: DenseCRF | None = None

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the logits "out", and "aux" with an auxiliary head, at any resolution."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        image: Tensor | None = None,
        *,
        target: Tensor | None = None,
        criterion: Criterion | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Returns logits, or for a target their loss, without logits of the image's size.

        Args:
            x: (N, in_channels, H, W), normalised.
            image: (N, 3, H, W) in 0 to 255, for the CRF; by default x, with torchvision's mean and
                standard deviation put back. Of more than three channels these are the first three,
                of fewer the first one in grey.
            target: classes of pixels (N, H, W), of the logits' size, which make the output a loss.
            criterion: the loss of small logits (N, C, h, w) and a target, which it upsamples them
                to: a module of fastseg.nn; default ``UpsampleCrossEntropyLoss`` with the model's
                align_corners, which ignores -100.

        Returns:
            Logits (N, num_classes, H, W); with an auxiliary head a dict of "out" and "aux". With a
            target the criterion's loss, to which an auxiliary head's is added times 0.4.

        Raises:
            ValueError: x or the target has another shape.
        """
        self._check_input(x)
        if target is not None:
            return self._loss(x, image, target, criterion)
        out = {
            name: self.at_input_size(scores, x.shape[-2:])
            for name, scores in self.scores(x).items()
        }
        if self.crf is not None and (_trains(self.crf) or not self.training):
            out["out"] = self._refined(out["out"], _denormalised(x) if image is None else image)
        return out["out"] if self.aux_classifier is None else out

    def _loss(
        self, x: Tensor, image: Tensor | None, target: Tensor, criterion: Criterion | None
    ) -> Tensor:
        """Returns the loss of the scores, which the criterion upsamples."""
        if criterion is None:
            criterion = UpsampleCrossEntropyLoss(align_corners=self.align_corners)
        crf = self.crf is not None and (_trains(self.crf) or not self.training)
        if crf or not self._resizes_scores():
            output = self(x, image)
            scores = output if isinstance(output, dict) else {"out": output}
            shapes = {(s.shape[0], *s.shape[-2:]) for s in scores.values()}
        else:
            scores = self.scores(x)
            shapes = {(x.shape[0], *x.shape[-2:])}
        if shapes != {tuple(target.shape)}:
            expected = " and ".join(map(str, sorted(shapes)))
            raise ValueError(f"target must be (N, H, W) = {expected}, got {tuple(target.shape)}")
        loss = criterion(scores["out"], target)
        if "aux" in scores:
            loss = loss + AUX_WEIGHT * criterion(scores["aux"], target)
        return loss

    def _resizes_scores(self) -> bool:
        """Whether a forward pass ends in the scores' bilinear interpolation."""
        return type(self).at_input_size is SegmentationModel.at_input_size

    @torch.no_grad()
    def predict(
        self, x: Tensor, image: Tensor | None = None, *, return_confidence: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the class map of an image, without logits of its size where none are needed.

        Scores are resized and reduced by :func:`fastseg.upsample_argmax`. A CRF, which needs logits
        of every pixel, refines them first.

        Args:
            x: (N, in_channels, H, W), normalised.
            image: (N, 3, H, W) in 0 to 255, for the CRF; see :meth:`forward`.
            return_confidence: also returns the largest probability of each pixel.

        Returns:
            uint8 (N, H, W), or int16 for more than 256 classes; with return_confidence this and
            float32 (N, H, W).

        Raises:
            ValueError: x has another shape; the network has one class, whose map would be zeros.
        """
        self._check_input(x)
        if self.num_classes < 2:
            raise ValueError(
                "predict needs a network of at least 2 classes, got 1, whose logit is that of a"
                " foreground: threshold the output of forward, model(x) > 0"
            )
        if self.crf is None and self._resizes_scores():
            scores, size = self.scores(x)["out"], x.shape[-2:]
        else:
            scores = main_logits(self(x, image))
            size = scores.shape[-2:]
        return upsample_argmax(
            scores,
            size,
            align_corners=self.align_corners,
            dtype=torch.uint8 if self.num_classes <= 256 else torch.int16,
            return_confidence=return_confidence,
        )

    def _check_input(self, x: Tensor) -> None:
        """Raises ValueError for an x of another shape."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (N, {self.in_channels}, H, W), got {tuple(x.shape)}")

    def at_input_size(self, scores: Tensor, size: torch.Size) -> Tensor:
        """Resizes the scores to an image of one size."""
        return resize(scores, size, self.align_corners)

    def _refined(self, logits: Tensor, image: Tensor) -> Tensor:
        """Returns the logarithm of the CRF's probabilities, which are logits too."""
        return self.crf(-logits.float(), image, log=True).to(logits.dtype)


class FCNHead(nn.Sequential):
    """torchvision's head: a 3x3 convolution to a quarter of the channels, dropout, the classes.

    The keys are those of its children: 0 and 1 for the convolution and its batch norm, 4 for the
    last convolution.
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
        """Returns (N, num_classes, H, W) for x (N, in_channels, H, W)."""
        conv, bn, _, dropout, classify = self
        return classify(dropout(conv_bn_act(x, conv, bn, "relu")))


class BackboneModel(SegmentationModel):
    """A backbone, a classifier of its last features, and perhaps an auxiliary one of earlier ones.

    Args:
        backbone: turns an image into a dict of features, at least "out" and "aux".
        classifier: turns the features "out" into logits.
        num_classes: number of output channels.
        aux: whether to add an :class:`FCNHead` on the features "aux".
        in_channels: number of the image's channels.
        align_corners: how the scores are resized to the image, with corners aligned or not.
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
        """Returns logits "out" at the classifier's resolution, "aux" at that of its features."""
        features = self.backbone(x)
        scores = {"out": self.classify(features)}
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(features["aux"])
        return scores

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        """Returns the logits of the features."""
        return self.classifier(features["out"])


def main_logits(output: Tensor | dict[str, Tensor]) -> Tensor:
    """Returns the main logits of a network of fastseg or torchvision, without "aux"."""
    return output["out"] if isinstance(output, dict) else output


def finish(
    model: SegmentationModel, *, crf: str | DenseCRF | None, backend: str
) -> SegmentationModel:
    """Adds the CRF and chooses the backend, which are options of all builders.

    Args:
        model: a network.
        crf: None for no CRF; "post" for a fixed one with DeepLab v2's parameters, which runs in
            evaluation alone; "layer" for one that is trained with the network (CRF as RNN); or a
            :class:`fastseg.nn.DenseCRF`, which runs in training if any of its parameters is
            trainable.
        backend: "fastseg" or "torch"; the CRF is fastseg's on both.

    Raises:
        ValueError: an unknown crf or backend.
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
    """Returns a picture of three channels for the CRF, in 0 to 255 where x is a normalised one."""
    if x.shape[1] != len(MEAN):
        x = x[:, :3] if x.shape[1] > 3 else x[:, :1].expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(3, 1, 1) for v in (MEAN, STD))
    return F.relu((x.detach() * std + mean) * 255)
