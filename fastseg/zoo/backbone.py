"""The function fastseg.load_backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fastseg.models._model import SegmentationModel
from fastseg.models.backbones import VGG16, MobileNetV2, ResNet
from fastseg.models.backbones.vgg import FC_SIDE, FullyConvolutional, vgg16_as_convolutions
from fastseg.zoo.checkpoint import CheckpointError
from fastseg.zoo.files import read
from fastseg.zoo.report import LoadReport, fill
from fastseg.zoo.source import Converted
from fastseg.zoo.state_dicts import listed

CONVOLUTIONS = {
    "classifier.0.weight": "fc6.weight",
    "classifier.0.bias": "fc6.bias",
    "classifier.3.weight": "fc7.weight",
    "classifier.3.bias": "fc7.bias",
}
"""Keys of VGG16's fully connected layers, and of the convolutions that they become."""

ENDS = {ResNet: ("fc.",), MobileNetV2: ("classifier.",), VGG16: ("classifier.6.",)}
"""Prefixes of the keys that a backbone leaves out of its classification network."""


def load_backbone(model: SegmentationModel, path: str | Path) -> LoadReport:
    """Fills ``model.backbone`` from torchvision's ImageNet classification weights.

    The file is of resnet50, resnet101, mobilenet_v2 or vgg16. The end that classifies is left out:
    ``fc``, ``classifier``, and MobileNetV2's last convolution where the backbone has none. VGG16's
    fully connected layers become the convolutions fc6 and fc7 of FCN and DeepLab v1 and v2, of
    which DeepLab takes some taps and channels (see :func:`fastseg.models.vgg16_as_convolutions`).
    A backbone of other than three channels gets its first convolution as
    segmentation_models_pytorch makes it (see :func:`over_channels`).

    Args:
        model: a network with one of these backbones; its dtypes and devices stay.
        path: a .safetensors file, or one that torch.save wrote. None of its code is run.

    Returns:
        A report of what was loaded, and of the keys that were ignored.

    Raises:
        TypeError: the model has none of these backbones.
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be read or does not fit; the error lists all missing,
            unexpected and misshapen keys. The model is unchanged.
    """
    backbone = getattr(model, "backbone", None)
    if type(backbone) not in ENDS:
        raise TypeError(
            f"model must have a backbone of {', '.join(kind.__name__ for kind in ENDS)}, got a"
            f" {type(model).__name__} with {type(backbone).__name__}"
        )
    state = read(path).state
    ends = ENDS[type(backbone)]
    if isinstance(backbone, MobileNetV2) and len(backbone.features) == 18:
        ends = (*ends, "features.18.")
    fully_connected = _fully_connected(model) if isinstance(backbone, VGG16) else {}
    if isinstance(backbone, VGG16) and not fully_connected:
        ends = ("classifier.",)
    ignored = tuple(key for key in state if key.startswith(ends))
    state = {key: t for key, t in state.items() if key not in ignored}
    linear = {key: state.pop(key) for key in CONVOLUTIONS if fully_connected and key in state}
    if model.in_channels != 3:
        state = _with_channels(state, backbone.state_dict(), model.in_channels)
    tensors = {f"backbone.{key}": t for key, t in state.items()}
    names = {f"backbone.{key}": key for key in state}
    for name, module in fully_connected.items():
        for key, tensor in _as_convolutions(module, linear, path).items():
            tensors[f"{name}.{key}"] = tensor
            names[f"{name}.{key}"] = next(old for old, new in CONVOLUTIONS.items() if new == key)
    filled = ("backbone.", *(f"{name}." for name in fully_connected))
    expected = {key: t for key, t in model.state_dict().items() if key.startswith(filled)}
    return fill(
        model,
        Converted(tensors, names, ()),
        str(path),
        strict=True,
        expected=expected,
        source="torchvision",
        model=None,
        ignored=ignored,
    )


def over_channels(weight: Tensor, channels: int) -> Tensor:
    """Returns the weight of a first convolution over three channels as one over others.

    For one channel the three are added; for more they are repeated in turn and multiplied by three
    by the number of channels, so that responses to normalised channels keep their size.

    Args:
        weight: (out, 3, H, W).
        channels: the number of channels.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % 3] * (3 / channels)


def _with_channels(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """Returns a backbone's state_dict, its first convolution over other channels than three."""
    first = {k for k, t in expected.items() if t.ndim == 4 and t.shape[1] == channels}
    return {
        key: over_channels(t, channels) if key in first and t.ndim == 4 and t.shape[1] == 3 else t
        for key, t in state.items()
    }


def _fully_connected(model: nn.Module) -> dict[str, FullyConvolutional]:
    """Returns such layers by their names: one in FCN and v1, one per branch in DeepLab v2."""
    return {n: m for n, m in model.named_modules() if isinstance(m, FullyConvolutional)}


def _as_convolutions(
    module: FullyConvolutional, linear: Mapping[str, Tensor], path: str | Path
) -> dict[str, Tensor]:
    """Returns the fully connected layers of torchvision's vgg16 as the module's tensors."""
    missing = [key for key in CONVOLUTIONS if key not in linear]
    if missing:
        raise CheckpointError(f"{path} lacks VGG16's fully connected layers: {listed(missing)}")
    channels, inputs = linear["classifier.0.weight"].shape
    wanted = (module.fc6.out_channels, module.fc6.in_channels * FC_SIDE**2)
    if channels < wanted[0] or inputs != wanted[1]:
        raise CheckpointError(
            f"{path}: classifier.0.weight must be {wanted}, with as many or more rows, got"
            f" {(channels, inputs)}"
        )
    return vgg16_as_convolutions(
        linear, kernel_size=module.fc6.kernel_size[0], channels=module.fc6.out_channels
    )
