"""Models by the names that commands take: somebody's own code, other packages', checkpoints."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fastseg.models import build_model, list_models
from fastseg.models.foreign import ForeignModel, build_foreign
from fastseg.segment.segmenter import Segmenter, shipped_weights

CLASSES = 21
"""Number of classes of a network that is built by its name, PASCAL VOC's."""

FORMS = "package.module:name, smp:NAME, torchvision:NAME, timm:NAME, a checkpoint"


@dataclass(frozen=True)
class NamedModel:
    """A model in evaluation mode.

    Attributes:
        name: what was asked for.
        model: the model on torch's ops, or on whichever its own code calls.
        ours: the same network on fastseg's ops, for a network of ``fastseg.models``, else None.
    """

    name: str
    model: nn.Module
    ours: nn.Module | None = None


def load_named(name: str, options: Mapping[str, Any]) -> NamedModel:
    """Loads or builds a model. Nothing is downloaded unless the options ask for it.

    Args:
        name: one of :data:`FORMS`, shipped weights, or a network in ``fastseg.models``. The current
            folder is importable.
        options: arguments of what builds it; ``num_classes`` is 21 by default where it has one.

    Raises:
        ImportError: a package or module is not there, or fails as it is imported.
        FileNotFoundError: the name has none of these forms, and is no file.
        CheckpointError: a file that is no checkpoint.
        ValueError: there is no such network or attribute, or it cannot be built.
    """
    package, colon, attribute = name.partition(":")
    options = dict(options)
    if name in list_models():
        return _own(name, options)
    if colon and package in BUILDERS:
        return NamedModel(name, _evaluating(name, BUILDERS[package](attribute, options)))
    if name in shipped_weights() or Path(name).is_file():
        return _checkpoint(name, options)
    if colon:
        return NamedModel(name, _evaluating(name, _imported(package, attribute, options)))
    raise FileNotFoundError(
        f"{name}: no such file; a model is {FORMS}, or one of "
        f"{', '.join([*list_models(), *shipped_weights()])}"
    )


def first_line(error: BaseException) -> str:
    """Returns an error's class, and the first line of its text if it has one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


def _own(name: str, options: dict[str, Any]) -> NamedModel:
    options.pop("backend", None)
    classes = options.pop("num_classes", CLASSES)
    model, ours = (
        _called(name, lambda backend=b: build_model(name, classes, backend=backend, **options))
        for b in ("torch", "fastseg")
    )
    ours.load_state_dict(model.state_dict())
    return NamedModel(name, model.eval(), ours.eval())


def _checkpoint(name: str, options: dict[str, Any]) -> NamedModel:
    options.pop("backend", None)
    try:
        model, ours = (
            Segmenter.load(name, options=options, backend=backend).model.eval()
            for backend in ("torch", "fastseg")
        )
    except TypeError as error:  # there is no such option
        raise ValueError(f"{name}: {error}") from error
    return NamedModel(name, model, None if isinstance(model, ForeignModel) else ours)


def _smp(network: str, options: dict[str, Any]) -> nn.Module:
    classes = options.pop("num_classes", options.pop("classes", CLASSES))
    name = f"smp:{network}"
    # The network itself: what a script of that package runs.
    return _called(name, lambda: build_foreign(name, classes, **options).network)


def _torchvision(network: str, options: dict[str, Any]) -> nn.Module:
    models = _package("torchvision.models", "torchvision")
    name = f"torchvision:{network}"
    builder = _called(name, lambda: models.get_model_builder(network))
    parameters = inspect.signature(builder).parameters
    defaults = {"weights": None}
    if "weights_backbone" in parameters:
        defaults["weights_backbone"] = None
    if builder.__module__.startswith("torchvision.models.segmentation"):
        defaults["num_classes"] = CLASSES
    return _called(name, lambda: builder(**{**defaults, **options}))


def _timm(network: str, options: dict[str, Any]) -> nn.Module:
    timm = _package("timm", "timm")
    return _called(f"timm:{network}", lambda: timm.create_model(network, **options))


BUILDERS = {"smp": _smp, "torchvision": _torchvision, "timm": _timm}
"""What builds a package's networks, by the beginning of a name."""


def _package(module: str, distribution: str) -> ModuleType:
    """Imports a package that is optional."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"{distribution} cannot be imported ({first_line(error)}): pip install {distribution}"
        ) from error


def _called(name: str, build: Callable[[], Any]) -> Any:
    """Calls code that may refuse its arguments with any error, and says so in a line."""
    try:
        return build()
    except ImportError:  # says already what to install
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} cannot be built: {first_line(error)}") from error


def _evaluating(name: str, model: nn.Module) -> nn.Module:
    """Puts a model in evaluation by its own method, which may return anything."""
    try:
        model.eval()
    except Exception as error:
        raise ValueError(f"{name} cannot be put in evaluation: {first_line(error)}") from error
    return model


def _imported(module_name: str, attribute: str, options: dict[str, Any]) -> nn.Module:
    """Imports a module of the path or of the current folder, and makes its model."""
    name = f"{module_name}:{attribute}"
    words = [*module_name.split("."), *attribute.split(".")]
    if not all(word.isidentifier() for word in words):
        raise ValueError(f"{name}: an import path is package.module:name")
    found: Any = _module(module_name)
    for depth, word in enumerate(attribute.split(".")):
        if not hasattr(found, word):
            place = ".".join([module_name, *attribute.split(".")[:depth]])
            raise ValueError(f"{name}: {place} has no {word}; it has {_models_in(found)}")
        found = getattr(found, word)
    if isinstance(found, nn.Module):
        if options:
            raise ValueError(f"{name} is built already: --option is for classes and functions")
        return found
    if not callable(found):
        raise ValueError(f"{name} must be a module, a class or a function, got {_kind(found)}")
    model = _called(name, lambda: found(**options))
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} must make a torch.nn.Module, it made {_kind(model)}")
    return model


def _module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ImportError(
                f"there is no module {error.name}, neither installed nor in this folder"
            ) from error
        raise ImportError(f"{name} cannot be imported: {first_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ImportError(f"{name} cannot be imported: {first_line(error)}") from error


def _models_in(place: Any) -> str:
    """Returns the names of what may be, or make, a model in a module or class."""
    own = getattr(place, "__name__", None)
    names = [
        name
        for name, value in vars(place).items()
        if not name.startswith("_")
        and (
            isinstance(value, nn.Module)
            or (callable(value) and getattr(value, "__module__", None) == own)
        )
    ]
    return ", ".join(names) or "no models"


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
