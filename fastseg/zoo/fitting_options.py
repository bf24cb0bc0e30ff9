"""Search for the options of a builder under which a state_dict fits, for an error's text."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg.models import build_model, builder_options
from fastseg.models._options import options_of_backbone
from fastseg.zoo.state_dicts import misfits

MOST_ROUNDS = 3
"""Largest number of rounds through all options."""

YES_OR_NO = (False, True)
CHOICES: dict[str, tuple[Any, ...]] = {
    "aspp_conv": YES_OR_NO,
    "atrous_rates": ((), (12,), (6, 12), (6, 12, 18), (6, 12, 18, 24)),
    "aux": YES_OR_NO,
    "backbone": ("mobilenet_v2", "resnet50", "resnet101", "vgg16", "xception65"),
    "batch_norm": YES_OR_NO,
    "crf": (None, "layer"),
    "decoder_convs": (1, 2, 3),
    "deep_stem": YES_OR_NO,
    "depth": (1, 2, 3, 4, 5, 6),
    "depthwise_batch_norm": YES_OR_NO,
    "head_conv": YES_OR_NO,
    "kernel_size": (1, 3, 5, 7, 9),
    "last_conv": YES_OR_NO,
    "middle_blocks": (8, 16),
    "project_kernel_size": (1, 3),
    "separable": YES_OR_NO,
    "upsampling": ("transposed", "bilinear", "nearest"),
    "variant": ("largefov", "4x4", "4x4_small", "7x7", "aspp_l", "aspp_s"),
    "width_mult": (0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
}
"""Options on which keys and shapes depend, and their usual values."""

CHANNELS = (
    "aspp_channels",
    "fc_channels",
    "in_channels",
    "low_level_channels",
    "num_classes",
    "width",
)
"""Options that are numbers of channels, whose values come from the shapes that differ."""


class Fit(NamedTuple):
    """The fit of a state_dict to a model.

    Args:
        misfits: number of keys that do not fit.
        lengths: pairs of an axis's lengths that differ, in the state_dict and in the model.
    """

    misfits: float
    lengths: set[tuple[int, int]]


def hint(builder: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Returns the end of an error's text: ``; it fits with width=4 (not 8)``, or nothing.

    Args:
        builder: the builder's name.
        options: the builder's arguments, with `num_classes`, under which the state_dict does not
            fit.
        state: a state_dict with the keys of the builder's model.
    """
    changes = fitting_changes(builder, options, state)
    was = {**builder_options(builder), **options}
    texts = [
        f"{name}={value!r}" + (f" (not {was[name]!r})" if was[name] is not None else "")
        for name, value in (changes or {}).items()
    ]
    return f"; it fits with {', '.join(texts)}" if texts else ""


def fitting_changes(
    builder: str, options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """Returns new values of options by which a state_dict fits, or None if none are found.

    Option after option takes the value that leaves the fewest misfits, as long as they become
    fewer.
    """
    fit = _fit(builder, options, state)
    changes: dict[str, Any] = {}
    for _ in range(MOST_ROUNDS):
        before = fit.misfits
        for name in {**builder_options(builder), **options}:
            values = list(_values(name, builder, {**options, **changes}, fit))
            fits = [_fit(builder, {**options, **changes, name: value}, state) for value in values]
            best = min(range(len(fits)), key=lambda i: fits[i].misfits, default=None)
            if best is not None and fits[best].misfits < fit.misfits:
                changes[name], fit = values[best], fits[best]
            if not fit.misfits:
                return _needed(builder, options, changes, state)
        if fit.misfits == before:
            break
    return None if fit.misfits else changes


def _needed(
    builder: str, options: Mapping[str, Any], changes: dict[str, Any], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Returns the changes without which the state_dict does not fit."""
    for name in list(changes):
        rest = {key: value for key, value in changes.items() if key != name}
        if not _fit(builder, {**options, **rest}, state).misfits:
            changes = rest
    return changes


def _fit(builder: str, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Fit:
    """Returns the fit to the model with these options; infinitely many misfits without one."""
    try:
        with torch.device("meta"), warnings.catch_warnings():  # only shapes count
            warnings.simplefilter("ignore")  # layers without elements warn
            model = build_model(builder, **options).state_dict()
    except (TypeError, ValueError):
        return Fit(float("inf"), set())
    found = misfits(model, state)
    lengths = {
        pair
        for key in found.misshapen
        for pair in zip(state[key].shape, model[key].shape, strict=False)
        if pair[0] != pair[1] and all(pair)
    }
    return Fit(sum(map(len, found)), lengths)


def _values(name: str, builder: str, options: Mapping[str, Any], fit: Fit) -> Iterator[Any]:
    """Yields other values of an option."""
    defaults = builder_options(builder)
    value = options.get(name, defaults.get(name))
    if name != "backbone_options":
        yield from _others(name, value, fit)
        return
    given = dict(value or {})
    for inner in given:  # without it, the backbone's default holds
        yield {key: v for key, v in given.items() if key != inner}
    backbone = options.get("backbone", defaults["backbone"])
    for inner, default in options_of_backbone(backbone).items():
        for other in _others(inner, given.get(inner, default), fit):
            yield {**given, inner: other}


def _others(name: str, value: Any, fit: Fit) -> Iterator[Any]:
    if name in CHOICES:
        yield from (choice for choice in CHOICES[name] if choice != value)
    elif name in CHANNELS and value is None:
        yield from sorted({has for has, _ in fit.lengths})
    elif name in CHANNELS:
        # Other layers have multiples of these channels.
        scaled = {value * has // of for has, of in fit.lengths if value * has % of == 0}
        yield from sorted(scaled - {value})
