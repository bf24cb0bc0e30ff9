"""Options of a builder that the keys and shapes of a state_dict tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastseg.zoo.checkpoint import CheckpointError

CLASSES = {
    "deeplabv1": ("classifier.1.weight",),
    "deeplabv2": ("classifier.c0.weight", "classifier.0.1.weight"),
    "deeplabv3": ("classifier.4.weight", "classifier.1.weight"),
    "deeplabv3plus": ("classifier.score.weight",),
    "fcn": ("classifier.4.weight",),
    "fcn8s": ("score.weight",),
    "fcn16s": ("score.weight",),
    "fcn32s": ("score.weight",),
    "segnet": ("classifier.weight",),
    "segnet_basic": ("classifier.weight",),
    "unet": ("classifier.weight",),
}
"""Keys of weights whose first axis is the classes, by the builder; the first found counts."""

ASPP = {"deeplabv3": "classifier.0", "deeplabv3plus": "classifier.aspp"}
"""Prefixes of the ASPP's keys by the builder."""

RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}


def number_of_classes(model: str, state: Mapping[str, Tensor], name: str) -> int:
    """Returns the number of classes of a builder's state_dict.

    Raises:
        CheckpointError: no weight tells it; the error calls the state_dict `name`.
    """
    for key in CLASSES[model]:
        if key in state:
            return state[key].shape[0]
    raise CheckpointError(f"{name} lacks {CLASSES[model][0]}, whose shape tells the classes")


def options_of(model: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the builder's options that a state_dict with fastseg's keys tells."""
    options: dict[str, Any] = {}
    if any(key.startswith("aux_classifier.") for key in state):
        options["aux"] = True
    if model in ("fcn8s", "fcn16s", "fcn32s"):
        return {**options, **_vgg(state)}
    if model == "unet":
        return {**options, **_unet(state)}
    options |= _backbone(state)
    prefix = ASPP.get(model)
    if prefix is not None:
        project = state.get(f"{prefix}.project.0.weight")
        if project is not None:
            options["aspp_channels"] = project.shape[0]
        if f"{prefix}.convs.1.0.0.weight" in state or f"{prefix}.convs.1.0.0.0.weight" in state:
            options["separable"] = True
        elif model == "deeplabv3plus":
            options["separable"] = False
    return options


def _backbone(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the backbone's name and options; nothing if it is none of fastseg's."""
    first = state.get("backbone.features.0.0.weight")
    if first is not None and "backbone.features.17.conv.2.weight" in state:
        last = "backbone.features.18.0.weight" in state
        return {
            "backbone": "mobilenet_v2",
            "backbone_options": {"last_conv": True} if last else {},
            "in_channels": first.shape[1],
        }
    deep = "backbone.stem.0.0.weight" in state
    first = state.get("backbone.stem.0.0.weight" if deep else "backbone.conv1.weight")
    if first is None or "backbone.layer1.0.conv3.weight" not in state:
        return {}
    layers = tuple(_count(rf"backbone\.layer{i}\.(\d+)\..*", state) for i in range(1, 5))
    width = state["backbone.layer1.0.conv1.weight"].shape[0]
    options: dict[str, Any] = {"deep_stem": True} if deep else {}
    if width != 64:
        options["width"] = width
    if layers not in RESNETS:  # the network is deeper, such as ResNet-152
        options["layers"] = layers
    return {
        "backbone": RESNETS.get(layers, "resnet50"),
        "backbone_options": options,
        "in_channels": first.shape[1],
    }


def _vgg(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first, fc7 = state.get("backbone.features.0.weight"), state.get("fc.fc7.weight")
    options = {}
    if first is not None:
        options |= {"width": first.shape[0], "in_channels": first.shape[1]}
    if fc7 is not None:
        options["fc_channels"] = fc7.shape[0]
    return options


def _unet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    transposed = "up.0.up.weight" in state
    options = {"upsampling": "transposed" if transposed else "bilinear"}
    if depth := _count(r"up\.(\d+)\..*", state):
        options["depth"] = depth
    first = state.get("down.0.conv1.0.weight")
    if first is None and "down.0.conv1.weight" in state:
        first = state["down.0.conv1.weight"]
        options["batch_norm"] = False
    if first is not None:
        options |= {"width": first.shape[0], "in_channels": first.shape[1]}
    return options


def _count(pattern: str, state: Mapping[str, Tensor]) -> int:
    """Returns how many different numbers the pattern's group matches."""
    compiled = re.compile(pattern)
    return len({match[1] for key in state if (match := compiled.fullmatch(key))})
