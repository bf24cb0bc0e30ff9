"""Descriptions of projects whose checkpoints load, and the conversion of their keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from fastseg.models._model import MEAN, STD
from fastseg.nn.aspp_keys import RENAMES, Replacement, number_pooling, rename


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image for a network: ``(image - mean) / std``.

    Args:
        mean: the mean of each channel, in the order of `channels`, of an image in 0 to 1.
        std: the standard deviation of each channel in that order; 1/255 leaves values in 0 to 255.
        channels: "RGB" or "BGR".
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    channels: str = "RGB"


def caffe(*mean: float) -> Preprocessing:
    """Returns Caffe's preprocessing: blue, green and red in 0 to 255 less their mean."""
    return Preprocessing(tuple(m / 255 for m in mean), (1 / 255,) * 3, "BGR")


class Converted(NamedTuple):
    """A checkpoint with fastseg's keys.

    Attributes:
        state: the tensors by fastseg's keys.
        names: the file's keys by fastseg's.
        unknown: keys of the file that no rule knows.
    """

    state: dict[str, Tensor]
    names: dict[str, str]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """One of a source's networks.

    Args:
        model: the builder's name in ``fastseg.models.list_models()``.
        marks: patterns, each of which one of its keys matches in full.
        renames: fastseg's keys by patterns of whole keys, as templates of :meth:`re.Match.expand`
            or functions of the match; the first pattern that matches counts.
        options: the builder's options under which the outputs are the source's. Those that shapes
            and keys tell, such as classes and backbone, are read from the checkpoint.
        backbone_options: options of the backbone, by its name.
        convert: a function of the renamed tensors, where more than names differ.
    """

    model: str
    marks: tuple[str, ...]
    renames: Mapping[str, Replacement]
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def fits(self, keys: Mapping[str, Any]) -> bool:
        """Whether the keys are those of this network."""
        return all(has(keys, mark) for mark in self.marks)

    def converted(self, state: Mapping[str, Tensor]) -> Converted:
        """Returns the state_dict with fastseg's keys."""
        names, unknown = {}, []
        for key in state:
            new = rename(key, self.renames)
            if new is None:
                unknown.append(key)
            else:
                names[new] = key
        names = number_pooling(names)
        tensors = {new: state[key] for new, key in names.items()}
        if self.convert is not None:
            tensors = self.convert(tensors)
        return Converted(tensors, names, tuple(unknown))


@dataclass(frozen=True)
class Source:
    """A project whose checkpoints load.

    Args:
        name: the project's name as a ``source``.
        what: a description of the project and its networks, for errors.
        preprocessing: the preprocessing of its networks' input.
        layouts: those of its networks that fastseg has.
        refused: reasons why its other networks do not load, by patterns of their keys.
    """

    name: str
    what: str
    preprocessing: Preprocessing
    layouts: tuple[Layout, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def layout_of(self, keys: Mapping[str, Any]) -> Layout | None:
        """Returns the network with these keys; None if it is of another source."""
        return next((layout for layout in self.layouts if layout.fits(keys)), None)

    def refusal_of(self, keys: Mapping[str, Any]) -> str | None:
        """Returns why a checkpoint of this source with these keys does not load, or None."""
        return next((why for pattern, why in self.refused.items() if has(keys, pattern)), None)


def has(keys: Mapping[str, Any], pattern: str) -> bool:
    """Whether a key matches the pattern in full."""
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(key) for key in keys)


def same(*prefixes: str) -> dict[str, str]:
    """Returns renames of keys that are fastseg's already."""
    return {rf"({re.escape(prefix)}\..*)": r"\1" for prefix in prefixes}


def moved(theirs: str, ours: str) -> dict[str, str]:
    """Returns renames of a module's keys: a pattern and its replacement."""
    return {rf"{theirs}\.(?P<rest>.*)": rf"{ours}.\g<rest>"}


def conv_bn(theirs: str, ours: str, names: tuple[str, str] = ("conv", "bn")) -> dict[str, str]:
    """Returns renames of a convolution and its batch norm, which are 0 and 1 in fastseg."""
    conv, bn = names
    return {**moved(rf"{theirs}\.{conv}", f"{ours}.0"), **moved(rf"{theirs}\.{bn}", f"{ours}.1")}


def aspp(source: str, theirs: str, ours: str) -> dict[str, str]:
    """Returns renames of a source's ASPP: a pattern without groups, and fastseg's prefix."""
    return {rf"{theirs}\.{pattern}": f"{ours}.{new}" for pattern, new in RENAMES[source].items()}
