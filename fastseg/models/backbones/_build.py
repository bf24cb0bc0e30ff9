"""Backbones by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastseg.models.backbones.mobilenet_v2 import mobilenet_v2
from fastseg.models.backbones.resnet import resnet50, resnet101
from fastseg.models.backbones.xception import xception65

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet101": resnet101,
    "resnet50": resnet50,
    "xception65": xception65,
}
"""Builders of the backbones by their names."""


def build_backbone(
    name: str, options: Mapping[str, Any] | None = None, **defaults: Any
) -> nn.Module:
    """Builds a backbone by its name.

    Args:
        name: "mobilenet_v2", "resnet50", "resnet101" or "xception65".
        options: keyword arguments of that backbone, which win over the defaults.
        **defaults: further keyword arguments; those that are None are left out.

    Returns:
        A module from an image to a dict of features "low_level", "aux" and "out", whose channels
        are in its attribute ``channels``.

    Raises:
        ValueError: an unknown name or an option out of range.
        TypeError: an option that this backbone does not have.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {sorted(BACKBONES)}, got {name!r}")
    given = {key: value for key, value in defaults.items() if value is not None}
    return BACKBONES[name](**{**given, **(options or {})})
