"""Networks of segmentation_models_pytorch and torchvision by name, where these are installed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.models._model import SegmentationModel

PACKAGES = {
    "smp": ("segmentation_models_pytorch", "segmentation_models_pytorch"),
    "torchvision": ("torchvision.models.segmentation", "torchvision"),
}
"""The module of a package's networks, and what pip installs, by the beginning of a name."""

REFUSED = {
    "smp": {
        "classes": "num_classes is their number",
        "aux_params": "the network would return a class of the whole image beside the logits",
    },
}
"""Options of a package's networks that a segmentation model has no place for, and why."""


def is_foreign(name: str) -> bool:
    """Whether a name, such as "smp:Unet", is that of another package's network."""
    return name.partition(":")[0] in PACKAGES and ":" in name


class ForeignModel(SegmentationModel):
    """A network of another package with the interface of fastseg's.

    Its keys are those of the network, after ``network.``.

    Args:
        network: turns (N, C, H, W) into logits of that size, or a dict of "out" and perhaps "aux".
        num_classes: number of output channels.
        in_channels: number of the image's channels.
        multiple: a number of pixels that divides the sides which the network takes; images are
            padded to them with zeros, and the logits cropped.
    """

    def __init__(self, network: nn.Module, num_classes: int, in_channels: int, multiple: int):
        super().__init__(num_classes, in_channels=in_channels)
        self.network = network
        self.multiple = multiple

    @property
    def backbone(self) -> nn.Module:
        """The part that is pretrained: the encoder or backbone.

        Raises:
            AttributeError: the network has none.
        """
        for name in ("encoder", "backbone"):
            if hasattr(self.network, name):
                return getattr(self.network, name)
        raise AttributeError(f"{type(self.network).__name__} has no encoder and no backbone")

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the logits "out", and "aux" with an auxiliary head."""
        height, width = x.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        # An exported graph is for all sizes: it does not ask whether this one is padded.
        exports = torch.compiler.is_exporting()
        output = self.network(nn.functional.pad(x, padding) if exports or any(padding) else x)
        output = output if isinstance(output, dict) else {"out": output}
        if exports:  # a slice's strides would tell the size apart; negative padding crops
            crop = [-side for side in padding]
            return {name: nn.functional.pad(scores, crop) for name, scores in output.items()}
        return {name: scores[..., :height, :width] for name, scores in output.items()}


def build_foreign(name: str, num_classes: int, **options: Any) -> ForeignModel:
    """Builds a network of another package.

    Args:
        name: "smp:" and a class of segmentation_models_pytorch, such as "smp:Unet", or
            "torchvision:" and a function of torchvision.models.segmentation.
        num_classes: number of output channels.
        **options: arguments of that class or function. Nothing is downloaded unless they ask for
            it (``encoder_weights``, ``weights_backbone``). ``backend`` is for fastseg's networks
            and left aside here: the ops are torch's, and :func:`fastseg.optimize_` swaps them.

    Raises:
        ImportError: the package is not installed, or does not fit the installed torch.
        ValueError: the package has no such network, or none of these options; torchvision's
            networks take three channels, and smp's neither ``classes`` nor ``aux_params``.
        TypeError: an option that the network does not have.
    """
    package, _, network = name.partition(":")
    options.pop("backend", None)
    for option, why in REFUSED.get(package, {}).items():
        if options.get(option) is not None:
            raise ValueError(f"{name}: {option} must not be given, got {options[option]!r}: {why}")
    builder = _builder(package, network)
    channels = options.get("in_channels", 3)
    if package == "torchvision":
        options.pop("in_channels", None)
        if channels != 3:
            raise ValueError(
                f"{name} takes 3 channels, got in_channels={channels}: torchvision's networks take "
                "no others; those of fastseg and smp do"
            )
    if package == "smp":
        arguments = {"encoder_weights": None, "in_channels": 3, "classes": num_classes}
    else:
        arguments = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
    parameters = inspect.signature(builder).parameters
    unknown = [key for key in options if key not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(
            f"{name} got an unexpected keyword argument {unknown[0]!r}; its options are "
            f"{', '.join(parameters)}"
        )
    try:
        built = builder(**{**arguments, **options})
    except Exception as error:  # its layers refuse values with nearly anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} cannot be built with {options}: {reason}") from error
    return ForeignModel(built, num_classes, channels, 32 if package == "smp" else 1)


def _builder(package: str, network: str) -> Callable[..., nn.Module]:
    module = _module(package)
    builder = getattr(module, network, None) if not network.startswith("_") else None
    usable = callable(builder) and not inspect.isabstract(builder)
    if not usable or not {"classes", "num_classes"} & set(inspect.signature(builder).parameters):
        known = sorted(
            name
            for name, found in vars(module).items()
            if (inspect.isclass if package == "smp" else inspect.isfunction)(found)
            and not name.startswith("_")
            and getattr(found, "__module__", "").startswith(module.__name__)
        )
        raise ValueError(f"{package} has no network {network!r}; it has {', '.join(known)}")
    return builder


def _module(package: str) -> ModuleType:
    """Imports a package's networks here, because they are optional and take seconds.

    Raises:
        ImportError: it is not installed, or does not fit the installed torch.
    """
    module, distribution = PACKAGES[package]
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ImportError(
            f"{package}: networks need {distribution}, which cannot be imported ({reason}): "
            f"pip install {distribution.replace('_', '-')}"
        ) from error
