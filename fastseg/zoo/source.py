"""What is known of a project whose checkpoints load: data, and how keys become fastseg's."""

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
    """How an image becomes a network's input: ``(image - mean) / std``.

    Args:
        mean: for each channel, in the order of `channels`, of an image in 0 to 1.
        std: likewise; 1/255 leaves values in 0 to 255.
        channels: "RGB" or "BGR".
    """

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    channels: str = "RGB"


def caffe(*mean: float) -> Preprocessing:
    """Of Caffe's networks: blue, green and red in 0 to 255 less their mean."""
    return Preprocessing(tuple(m / 255 for m in mean), (1 / 255,) * 3, "BGR")


class Converted(NamedTuple):
    """A checkpoint with fastseg's keys."""

    state: dict[str, Tensor]
    names: dict[str, str]  # what the file calls them
    unknown: tuple[str, ...]  # keys of the file that no rule knows


@dataclass(frozen=True)
class Layout:
    """One of a source's networks.

    Args:
        model: the builder's name, of ``fastseg.models.list_models()``.
        marks: patterns each of which one of its keys matches in full.
        renames: from patterns of whole keys to fastseg's, as templates of :meth:`re.Match.expand`
            or functions of the match; the first that matches counts.
        options: the builder's, under which the outputs are the source's. What shapes and keys tell,
            such as classes and backbone, is read from the checkpoint.
        backbone_options: further ones, by the backbone.
        convert: of the renamed tensors, where more than names differ.
    """

    model: str
    marks: tuple[str, ...]
    renames: Mapping[str, Replacement]
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    def fits(self, keys: Mapping[str, Any]) -> bool:
        """Whether the keys are of this network."""
        return all(has(keys, mark) for mark in self.marks)

    def converted(self, state: Mapping[str, Tensor]) -> Converted:
        """The state_dict with fastseg's keys."""
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
        name: what ``source`` calls it.
        what: it is, in words.
        preprocessing: of its networks' input.
        layouts: its networks that are fastseg's.
        refused: patterns of keys of its other networks, and why they do not load.
    """

    name: str
    what: str
    preprocessing: Preprocessing
    layouts: tuple[Layout, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def layout_of(self, keys: Mapping[str, Any]) -> Layout | None:
        """The network that the keys are of; None if they are of another source's."""
        return next((layout for layout in self.layouts if layout.fits(keys)), None)

    def refusal_of(self, keys: Mapping[str, Any]) -> str | None:
        """Why a checkpoint with these keys, though of this source, does not load."""
        return next((why for pattern, why in self.refused.items() if has(keys, pattern)), None)


def has(keys: Mapping[str, Any], pattern: str) -> bool:
    """Whether a key matches the pattern in full."""
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(key) for key in keys)


def same(*prefixes: str) -> dict[str, str]:
    """Renames of keys that are fastseg's already."""
    return {rf"({re.escape(prefix)}\..*)": r"\1" for prefix in prefixes}


def moved(theirs: str, ours: str) -> dict[str, str]:
    """Renames of a module's keys: a pattern and its replacement."""
    return {rf"{theirs}\.(?P<rest>.*)": rf"{ours}.\g<rest>"}


def conv_bn(theirs: str, ours: str, names: tuple[str, str] = ("conv", "bn")) -> dict[str, str]:
    """Renames of a convolution and its batch norm, 0 and 1 here: a pattern and its replacement."""
    conv, bn = names
    return {**moved(rf"{theirs}\.{conv}", f"{ours}.0"), **moved(rf"{theirs}\.{bn}", f"{ours}.1")}


def aspp(source: str, theirs: str, ours: str) -> dict[str, str]:
    """Renames of a source's ASPP: a pattern without groups, and what is before its keys here."""
    return {rf"{theirs}\.{pattern}": f"{ours}.{new}" for pattern, new in RENAMES[source].items()}
