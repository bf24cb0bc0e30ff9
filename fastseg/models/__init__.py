"""Segmentation networks built from fastseg's modules."""

from __future__ import annotations

from torch import nn

from fastseg.models._model import CRF_ITERATIONS, CRF_TERMS, finish, main_logits
from fastseg.models.backbones.vgg import vgg16_as_convolutions
from fastseg.models.deeplabv1 import deeplabv1
from fastseg.models.deeplabv2 import DeepLabV2, deeplabv2
from fastseg.models.deeplabv3 import deeplabv3
from fastseg.models.deeplabv3plus import DeepLabV3Plus, deeplabv3plus
from fastseg.models.fcn import FCN, fcn, fcn8s, fcn16s, fcn32s
from fastseg.models.segnet import SegNet, segnet, segnet_basic
from fastseg.models.unet import UNet, unet

_BUILDERS = {
    builder.__name__: builder
    for builder in (
        deeplabv1,
        deeplabv2,
        deeplabv3,
        deeplabv3plus,
        fcn,
        fcn8s,
        fcn16s,
        fcn32s,
        segnet,
        segnet_basic,
        unet,
    )
}


def list_models() -> list[str]:
    """Return the names that ``build_model`` knows."""
    return sorted(_BUILDERS)


def build_model(name: str, num_classes: int, **options) -> nn.Module:
    """Build a model by its name.

    Args:
        name: one of ``list_models()``.
        num_classes: channels of the output.
        **options: keyword arguments of the builder of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"name must be one of {list_models()}, got {name!r}")
    return _BUILDERS[name](num_classes, **options)


__all__ = [
    "CRF_ITERATIONS",
    "CRF_TERMS",
    "FCN",
    "DeepLabV2",
    "DeepLabV3Plus",
    "SegNet",
    "UNet",
    "build_model",
    "deeplabv1",
    "deeplabv2",
    "deeplabv3",
    "deeplabv3plus",
    "fcn",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "finish",
    "list_models",
    "main_logits",
    "segnet",
    "segnet_basic",
    "unet",
    "vgg16_as_convolutions",
]
