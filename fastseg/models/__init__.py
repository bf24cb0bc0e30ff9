"""Segmentation networks built from fastseg's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastseg.models._model import CRF_ITERATIONS, CRF_TERMS, finish, main_logits
from fastseg.models._options import check_options, options_of_builder
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


def builder_options(name: str) -> dict[str, Any]:
    """Return the options of a builder and their defaults.

    Args:
        name: one of ``list_models()``.

    Raises:
        ValueError: unknown name.
    """
    return options_of_builder(_builder(name))


def build_model(name: str, num_classes: int, **options) -> nn.Module:
    """Build a model by its name.

    Args:
        name: one of ``list_models()``.
        num_classes: channels of the output.
        **options: keyword arguments of the builder of that name.

    Raises:
        ValueError: unknown name, or values with which there is no such model.
        TypeError: an option that the builder or its backbone has not, or a value of another type.
    """
    builder = _builder(name)
    check_options(builder, options)
    try:
        return builder(num_classes, **options)
    except ValueError:  # says which argument
        raise
    except Exception as error:  # of a layer deep inside, to which the value came
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = str(error).split("\n")[0]
        raise kind(
            f"{name}(num_classes={num_classes!r}, {given}) has no model: {reason}"
        ) from error


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in _BUILDERS:
        raise ValueError(f"name must be one of {list_models()}, got {name!r}")
    return _BUILDERS[name]


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
