"""Models of torchvision, segmentation_models_pytorch and timm, where they are installed."""

from __future__ import annotations

import importlib

import pytest
import torch

# torchvision's compiled ops are missing beside a torch wheel of another kind; its models need none,
# but the import looks for these schemas.
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")

TORCHVISION = (
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
SMP = {
    "DeepLabV3": "resnet18",
    "DeepLabV3Plus": "mobilenet_v2",
    "Unet": "resnet34",
    "PAN": "resnet18",
}
"""By architecture, the encoder."""
# A ReLU near zero may go either way after rounding, which moves gradients of 50 layers by 1e-3 in
# torch's own two layouts already: smooth activations show what is wrong and nothing else.
TIMM = {
    "resnet50 os16": {"output_stride": 16, "act_layer": torch.nn.SiLU},
    "resnet50 os8": {"output_stride": 8, "act_layer": torch.nn.SiLU},
    "mobilenetv3_large_100 os16": {"output_stride": 16},
    "efficientnet_b0": {},
}
"""Backbones that return the maps of all levels, by timm's name and a label."""


def import_or_skip(name: str):
    """The package, or a skip that says why."""
    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            _LIBRARY.define(op + _SCHEMA)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs {name}: {error}")


def build(name: str, **arguments) -> torch.nn.Module:
    """A model of random weights and statistics, in evaluation: of TORCHVISION, SMP or TIMM."""
    if name in TORCHVISION:
        models = import_or_skip("torchvision").models.segmentation
        aux = {} if name.startswith("lraspp") else {"aux_loss": True}
        builder = getattr(models, name)
        model = builder(weights=None, weights_backbone=None, num_classes=21, **aux, **arguments)
    elif name in TIMM:
        import_or_skip("torchvision")
        create = import_or_skip("timm").create_model
        model = create(name.split()[0], features_only=True, **{**TIMM[name], **arguments})
    else:
        import_or_skip("torchvision")
        smp = import_or_skip("segmentation_models_pytorch")
        encoder = {"encoder_name": SMP[name], "encoder_weights": None, "classes": 21}
        model = getattr(smp, name)(**{**encoder, **arguments})
    return with_statistics(model)


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Batch norms as after some training, in evaluation."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model.eval()
