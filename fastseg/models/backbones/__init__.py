"""Classification networks up to their features, with strides replaced by dilation."""

from fastseg.models.backbones._build import BACKBONES, build_backbone
from fastseg.models.backbones.mobilenet_v2 import MobileNetV2, mobilenet_v2
from fastseg.models.backbones.resnet import ResNet, resnet50, resnet101
from fastseg.models.backbones.vgg import VGG16, vgg16_as_convolutions
from fastseg.models.backbones.xception import Xception65, xception65

__all__ = [
    "BACKBONES",
    "VGG16",
    "MobileNetV2",
    "ResNet",
    "Xception65",
    "build_backbone",
    "mobilenet_v2",
    "resnet50",
    "resnet101",
    "vgg16_as_convolutions",
    "xception65",
]
