"""Models by the names of their builders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastseg.models._options import check_options, options_of_builder
from fastseg.models.deeplabv1 import deeplabv1
from fastseg.models.deeplabv2 import deeplabv2
from fastseg.models.deeplabv3 import deeplabv3
from fastseg.models.deeplabv3plus import deeplabv3plus
from fastseg.models.fcn import fcn, fcn8s, fcn16s, fcn32s
from fastseg.models.foreign import build_foreign, is_foreign
from fastseg.models.segnet import segnet, segnet_basic
from fastseg.models.unet import unet

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
    """Returns the names that ``build_model`` knows."""
    return sorted(_BUILDERS)


def builder_options(name: str) -> dict[str, Any]:
    """Returns the options of a builder with their defaults.

    Args:
        name: one of ``list_models()``.

    Raises:
        ValueError: an unknown name.
    """
    return options_of_builder(_builder(name))


def build_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Builds a model by its name.

    Args:
        name: one of ``list_models()``; or "smp:" or "torchvision:" and the name of a network of
            segmentation_models_pytorch or torchvision, see :mod:`fastseg.models.foreign`.
        num_classes: number of output channels.
        **options: keyword arguments of the builder of that name.

    Raises:
        ImportError: a network of a package that is not installed.
        ValueError: an unknown name, or values with which there is no such model.
        TypeError: an option that the builder or its backbone does not have, or a value of a wrong
            type.
    """
    if is_foreign(name):
        return build_foreign(name, num_classes, **options)
    builder = _builder(name)
    check_options(builder, options)
    try:
        return builder(num_classes, **options)
    except ValueError:  # its text names the argument
        raise
    except Exception as error:  # a layer deep inside has refused the value
        values = {"num_classes": num_classes, **options}
        given = ", ".join(f"{key}={value!r}" for key, value in values.items())
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = str(error).split("\n")[0]
        raise kind(f"{name}({given}) has no model: {reason}") from error


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in _BUILDERS:
        raise ValueError(f"name must be one of {list_models()}, got {name!r}")
    return _BUILDERS[name]
