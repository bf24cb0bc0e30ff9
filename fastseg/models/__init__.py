"""Segmentation networks built from fastseg's modules."""

from fastseg.models._build import build_model, builder_options, list_models
from fastseg.models._model import CRF_ITERATIONS, CRF_TERMS, finish, main_logits
from fastseg.models.backbones.vgg import vgg16_as_convolutions
from fastseg.models.deeplabv1 import deeplabv1
from fastseg.models.deeplabv2 import DeepLabV2, deeplabv2
from fastseg.models.deeplabv3 import deeplabv3
from fastseg.models.deeplabv3plus import DeepLabV3Plus, deeplabv3plus
from fastseg.models.fcn import FCN, fcn, fcn8s, fcn16s, fcn32s
from fastseg.models.segnet import SegNet, segnet, segnet_basic
from fastseg.models.unet import UNet, unet

__all__ = [
    "CRF_ITERATIONS",
    "CRF_TERMS",
    "FCN",
    "DeepLabV2",
    "DeepLabV3Plus",
    "SegNet",
    "UNet",
    "build_model",
    "builder_options",
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
