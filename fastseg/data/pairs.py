"""Pictures and their masks in folders, matched by their names."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".jp2"),
)
"""Endings of the names of pictures."""

SEPARATORS = "_-. "
"""Characters that end a common beginning of names and begin a common ending."""


class Pair(NamedTuple):
    """A picture and its mask.

    Attributes:
        name: what both are called: the picture's path in its folder, without its suffix.
        image: the picture's file.
        mask: the mask's file.
        part: the part of a known data set that the picture is in, where another has a picture of
            the same name; else "".
    """

    name: str
    image: Path
    mask: Path
    part: str = ""

    @property
    def full_name(self) -> str:
        """The name by which a file of names tells the picture from those of other parts."""
        return f"{self.part}/{self.name}" if self.part else self.name


class Matches(NamedTuple):
    """Pictures and masks of two folders.

    Attributes:
        pairs: those that belong together, by name.
        images: pictures without a mask.
        masks: masks without a picture.
    """

    pairs: list[Pair]
    images: list[Path]
    masks: list[Path]


def pictures(folder: str | Path) -> list[Path]:
    """Returns the pictures in a folder and the folders in it, by name; hidden files are left out.

    Links to folders are followed, but not to one that they lie in.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        inner = sorted(f for f in folders if not f.startswith("."))
        folders[:] = [f for f in inner if not _leads_back(Path(place, f))]
        found += [Path(place, name) for name in names if _is_picture(name)]
    return sorted(found)


def _leads_back(folder: Path) -> bool:
    """Whether a folder is one that it lies in, so that its pictures would come again."""
    return any(folder.samefile(above) for above in folder.absolute().parents)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def match(images: str | Path, masks: str | Path) -> Matches:
    """Matches the pictures of two folders by their names without suffix.

    Where none are the same, what all pictures' names have in common at their beginnings and ends
    does not count, nor what all masks' have: ``01_test.png`` and ``01_manual1.png`` match. Where
    that matches none either, a mask may have a longer name: ``cat.jpg`` and ``cat_mask.png``.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder has no pictures, or two of the same name; a picture has several masks.
    """
    named = []
    for folder, what in ((Path(images), "pictures"), (Path(masks), "masks")):
        found = pictures(folder)
        if not found:
            raise ValueError(f"{folder} has no {what} ({', '.join(SUFFIXES)})")
        named.append(by_name(found, folder))
    return match_named(*named)


def match_named(images: dict[str, Path], masks: dict[str, Path]) -> Matches:
    """Matches pictures and masks by their names, see :func:`match`.

    Raises:
        ValueError: the names of several masks begin with that of one picture.
    """
    image_of, mask_of = ({name: name for name in found} for found in (images, masks))
    if not image_of.keys() & mask_of.keys():
        image_of, mask_of = _cores(list(images)), _cores(list(masks))
    if not image_of.keys() & mask_of.keys():
        mask_of = _by_beginning(images, masks)
        image_of = {name: name for name in images}
    both = sorted(image_of.keys() & mask_of.keys())
    return Matches(
        [Pair(image_of[c], images[image_of[c]], masks[mask_of[c]]) for c in both],
        [images[image_of[c]] for c in sorted(image_of.keys() - mask_of.keys())],
        [masks[mask_of[c]] for c in sorted(mask_of.keys() - image_of.keys())],
    )


def by_name(
    files: Iterable[Path], folder: Path, name_of: Callable[[Path], str] | None = None
) -> dict[str, Path]:
    """Returns the pictures of a folder by their names.

    Args:
        files: the pictures.
        folder: the folder they lie in.
        name_of: a function that returns a picture's name; None is its path without suffix.

    Raises:
        ValueError: two have the same name.
    """
    named: dict[str, Path] = {}
    for path in files:
        name = name_of(path) if name_of else path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise ValueError(f"{folder} has two pictures called {name}: {named[name].name}, {path}")
        named[name] = path
    return named


def _cores(names: list[str]) -> dict[str, str]:
    """Returns names by what tells them apart; by themselves if that is not unique."""
    start = _common_start(names)
    start = start[: max(start.rfind(c) for c in SEPARATORS + "/") + 1]
    end = _common_start([name[::-1] for name in names])[::-1]
    places = [k for c in SEPARATORS if (k := end.find(c)) >= 0]
    end = end[min(places) :] if places else ""
    cores = {name[len(start) : len(name) - len(end)]: name for name in names}
    return cores if len(cores) == len(names) and all(cores) else {name: name for name in names}


def _common_start(names: list[str]) -> str:
    columns = zip(*names, strict=False)
    return "".join(c for c, *_ in takewhile(lambda column: len(set(column)) == 1, columns))


def _by_beginning(images: dict[str, Path], masks: dict[str, Path]) -> dict[str, str]:
    """Returns the names of masks by those of the pictures that they begin with."""
    found = defaultdict(list)
    for name in masks:
        found[_beginning(name, images)].append(name)
    several = {image: names for image, names in found.items() if len(names) > 1}
    if several:
        image, names = min(several.items())
        shown = ", ".join(masks[name].name for name in names)
        raise ValueError(
            f"{len(several)} of {len(images)} pictures have several masks, expected one each: "
            f"{images[image]} has {shown}"
        )
    return {image: name for image, (name,) in found.items()}


def _beginning(name: str, images: Container[str]) -> str:
    """Returns the longest beginning of a mask's name that is a picture's; else the name."""
    ends = [k for k, c in enumerate(name) if c in SEPARATORS]
    return next((name[:k] for k in reversed(ends) if name[:k] in images), name)
