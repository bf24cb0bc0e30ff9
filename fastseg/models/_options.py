"""Options of builders and backbones, read from their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fastseg.models.backbones import VGG16, MobileNetV2, ResNet, Xception65
from fastseg.models.fcn import FCN

FURTHER = {"fcn8s": FCN, "fcn16s": FCN, "fcn32s": FCN}
"""Classes to which builders pass their further options."""

BACKBONE_CLASSES = {
    "mobilenet_v2": MobileNetV2,
    "resnet50": ResNet,
    "resnet101": ResNet,
    "vgg16": VGG16,
    "xception65": Xception65,
}
"""Classes to which the backbones' builders pass their options."""


def options_of_builder(builder: Callable[..., Any]) -> dict[str, Any]:
    """Returns the keyword arguments of a builder with their defaults."""
    return _keywords(builder) | _keywords(FURTHER.get(builder.__name__))


def options_of_backbone(name: str) -> dict[str, Any]:
    """Returns the keyword arguments of a backbone with their defaults; none for an unknown one."""
    return _keywords(BACKBONE_CLASSES.get(name))


def check_options(builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises a TypeError that names an option which a builder or its backbone does not have."""
    known = options_of_builder(builder)
    _check_names(builder.__name__, options, known)
    backbone = options.get("backbone", known.get("backbone"))
    further = options.get("backbone_options") or {}
    if backbone in BACKBONE_CLASSES and isinstance(further, Mapping):
        _check_names(backbone, further, {"layers": None, **options_of_backbone(backbone)})


def _check_names(owner: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in options:
        if name not in known:
            raise TypeError(
                f"{owner}() got an unexpected keyword argument {name!r}; "
                f"its options are {', '.join(known)}"
            )


def _keywords(function: Callable[..., Any] | None) -> dict[str, Any]:
    if function is None:
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
