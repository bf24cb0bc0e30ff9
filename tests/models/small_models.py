"""Every builder with options that make its network small."""

from __future__ import annotations

import torch
from torch import nn

from fastseg.models import build_model

RESNET = {"width": 4, "layers": (1, 1, 1, 1)}
SMALL = {
    "deeplabv1": {"width": 4, "fc_channels": 8},
    "deeplabv1 4x4": {"width": 4, "fc_channels": 8, "variant": "4x4"},
    "deeplabv2": {"backbone_options": RESNET, "scales": (0.5, 1.0)},
    "deeplabv2 vgg16": {"backbone": "vgg16", "fc_channels": 8, "backbone_options": {"width": 4}},
    "deeplabv3": {"backbone_options": RESNET, "aspp_channels": 8},
    "deeplabv3 paper": {
        "backbone_options": {"width": 4, "layers": (1, 1, 1, 3)},
        "aspp_channels": 8,
        "multi_grid": (1, 2, 4),
        "output_stride": 16,
        "dilation_style": "paper",
        "align_corners": True,
    },
    "deeplabv3 mmseg": {
        "backbone_options": {**RESNET, "deep_stem": True},
        "aspp_channels": 8,
        "head_conv": False,
        "project_kernel_size": 3,
    },
    "deeplabv3 mobile": {
        "backbone": "mobilenet_v2",
        "backbone_options": {"width_mult": 0.25},
        "output_stride": 16,
        "atrous_rates": (),
        "aspp_channels": 8,
    },
    "deeplabv3plus": {"backbone_options": RESNET, "aspp_channels": 8},
    "deeplabv3plus vainf": {
        "backbone": "mobilenet_v2",
        "backbone_options": {"width_mult": 0.25, "pad_input": True},
        "aspp_channels": 8,
        "separable": False,
        "decoder_convs": 1,
    },
    "deeplabv3plus mobile": {
        "backbone": "mobilenet_v2",
        "backbone_options": {"width_mult": 0.25, "last_conv": True},
        "aspp_channels": 8,
        "aspp_conv": True,
        "depthwise_batch_norm": True,
        "decoder_convs": 1,
    },
    "deeplabv3plus xception65": {
        "backbone": "xception65",
        "backbone_options": {"width_mult": 0.05, "middle_blocks": 1},
        "separable": False,
        "aspp_channels": 8,
        "multi_grid": (1, 2, 4),
    },
    "fcn": {"backbone_options": RESNET},
    "fcn8s": {"width": 2, "fc_channels": 8},
    "fcn16s": {"width": 2, "fc_channels": 8},
    "fcn32s": {"width": 2, "fc_channels": 8, "learnt": False},
    "segnet_basic": {"width": 4, "kernel_size": 3},
    "unet": {"width": 4},
    "unet bilinear": {"width": 4, "upsampling": "bilinear"},
    "unet nearest": {"width": 4, "depth": 2, "upsampling": "nearest", "batch_norm": False},
}


def build(name: str, **options) -> nn.Module:
    """A network of 5 classes with settled batch norms and no weight that is zero."""
    torch.manual_seed(0)
    model = build_model(name.split()[0], 5, **{**SMALL[name], **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model
