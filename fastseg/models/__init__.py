"""Segmentation networks built from fastseg's modules."""

from __future__ import annotations

from torch import nn

from fastseg.models.segnet import SegNet, segnet, segnet_basic

_BUILDERS = {"segnet": segnet, "segnet_basic": segnet_basic}


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


__all__ = ["SegNet", "build_model", "list_models", "segnet", "segnet_basic"]
