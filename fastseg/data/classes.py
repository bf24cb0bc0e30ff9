"""The classes of a data set: names, colours, and which stored value of a mask means which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastseg.data.label_sets import Colour, LabelSet

IGNORE = 255
"""Id of pixels that count neither in training nor in evaluation."""

MOST_CLASSES = 255
"""Largest number of classes: ids are bytes, and 255 is IGNORE."""

VOID = ("void", "ignore", "ignored", "unlabelled", "unlabeled")
"""Names of classes whose pixels do not count."""

Value = int | Colour
"""A stored value of a mask: an id, or a colour."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Args:
        names: the classes' names by id.
        palette: RGB colours by id, in which results are drawn.
        values: the class, or IGNORE, by stored value: an id, or a colour for masks in colours. 255
            is IGNORE unless it is among them.
        licence: what the data set's licence asks of whoever trains on it, or "".

    Raises:
        ValueError: no class or too many, or as many colours as names are missing.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    values: Mapping[Value, int]
    licence: str = ""

    def __post_init__(self) -> None:
        """Checks the numbers of names and colours."""
        if not 1 <= len(self.names) <= MOST_CLASSES:
            raise ValueError(f"there must be 1 to {MOST_CLASSES} classes, got {len(self.names)}")
        if len(self.palette) != len(self.names):
            raise ValueError(f"{len(self.palette)} colours for {len(self.names)} classes")

    def __len__(self) -> int:
        """Returns the number of classes."""
        return len(self.names)

    @classmethod
    def of_labels(
        cls, labels: LabelSet, values: Mapping[Value, int] | None = None, licence: str = ""
    ) -> Classes:
        """Returns the classes of a known data set, with its stored ids and its colours."""
        count = len(labels.classes)
        colours = {tuple(colour): k for k, colour in enumerate(labels.palette)}
        ids = values if values is not None else {k: k for k in range(count)}
        return cls(tuple(labels.classes), tuple(labels.palette), {**colours, **ids}, licence)

    def with_values(self, values: Mapping[Value, int]) -> Classes:
        """Returns the same classes with other stored values."""
        return Classes(self.names, self.palette, values, self.licence)

    @property
    def colours(self) -> dict[Colour, int]:
        """The classes of masks in colours."""
        return {v: k for v, k in self.values.items() if isinstance(v, tuple)}

    def class_of(self, value: Value) -> int | None:
        """Returns the class of a stored value, or IGNORE; None if the value means nothing."""
        return self.values.get(value, IGNORE if value == IGNORE else None)

    def as_metadata(self) -> dict[str, Any]:
        """Returns lists for a checkpoint, from which :meth:`from_metadata` makes the classes."""
        return {
            "classes": list(self.names),
            "palette": [list(colour) for colour in self.palette],
            "mask_values": [
                [list(v) if isinstance(v, tuple) else v, k] for v, k in self.values.items()
            ],
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Classes:
        """Returns the classes of a checkpoint; ids count from 0 where it does not say otherwise."""
        names, palette = metadata["classes"], [tuple(colour) for colour in metadata["palette"]]
        stored = metadata.get("mask_values", [[k, k] for k in range(len(names))])
        values = {tuple(v) if isinstance(v, (list, tuple)) else v: k for v, k in stored}
        return cls(tuple(names), tuple(palette[: len(names)]), values)


def listed_values(values: Iterable[Value], most: int = 6) -> str:
    """Returns the first of some stored values as a text."""
    values = sorted(values, key=lambda v: v if isinstance(v, tuple) else (v,))
    texts = [f"rgb({v[0]}, {v[1]}, {v[2]})" if isinstance(v, tuple) else str(v) for v in values]
    return ", ".join(texts[:most]) + f" and {len(texts) - most} others" * (len(texts) > most)
