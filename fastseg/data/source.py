"""Somebody's pictures and masks as a data set: found, looked at and divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastseg.data.camvid import CamVid, no_transform
from fastseg.data.camvid_check import check_is_camvid
from fastseg.data.class_files import read_classes
from fastseg.data.classes import IGNORE, Classes
from fastseg.data.layouts import CAMVID_LAYOUT, Layout, layout_of
from fastseg.data.pairs import Pair, match
from fastseg.data.picture_format import PictureFormat
from fastseg.data.splits import FEW, PARTS, Parts, read_split, split_pairs, told_apart
from fastseg.data.survey import (
    Surveyed,
    fitted,
    of_one_type,
    problems_of,
    survey,
    told_classes,
)

SHOWN = 5
"""Number of broken files that an error names."""


class DataError(ValueError):
    """An error for pictures or masks that cannot be used."""


@dataclass(frozen=True)
class DataSource:
    """A data set whose files have all been looked at.

    Attributes:
        name: the folder, or the known data set.
        classes: the classes.
        parts: the pictures by "train", "val" and "test"; where some do not exist, "val" holds those
            of "train".
        surveyed: what was found in each, by the masks' files.
        notes: sentences about what was decided for the user.
        broken: why pictures were left out, by their files.
        form: how pictures are read as they are stored, with the type of their values; None is as
            RGB of 8 bits.
    """

    name: str
    classes: Classes
    parts: Parts
    surveyed: dict[Path, Surveyed]
    notes: list[str] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    form: PictureFormat | None = None

    def surveyed_part(self, part: str) -> list[Surveyed]:
        """Returns what was found in the pictures of a part."""
        return [self.surveyed[pair.mask] for pair in self.parts[part]]


@dataclass(frozen=True)
class DataOptions:
    """Where the data are, as the commands are told.

    Args:
        data: folder of a known data set, or "".
        images: folder of pictures, or "".
        masks: folder of masks, or "".
        classes: file of classes, or "".
        split: shares or a file, see :func:`fastseg.data.splits.split_pairs`, or "".
        seed: of the random division.
        skip_broken: whether pictures that cannot be used are left out, rather than an error.
        form: how pictures are read as they are stored; None is as RGB of 8 bits.
    """

    data: str = ""
    images: str = ""
    masks: str = ""
    classes: str = ""
    split: str = ""
    seed: int = 0
    skip_broken: bool = False
    form: PictureFormat | None = None

    def check(self) -> None:
        """Raises a ValueError unless either --data or both --images and --masks are given."""
        if bool(self.data) == bool(self.images or self.masks):
            raise ValueError("give either --data DIR, or --images DIR and --masks DIR")
        for given, other in (("images", "masks"), ("masks", "images")):
            if getattr(self, given) and not getattr(self, other):
                raise ValueError(f"--{given} also needs --{other}")


def open_data(
    options: DataOptions,
    wanted: Sequence[str] = ("train", "val"),
    *,
    known: Classes | None = None,
    progress: bool = False,
) -> DataSource:
    """Finds, divides and reads the pictures and masks of a data set.

    Args:
        options: where they are.
        wanted: the parts that are needed and looked at; ("all",) is all pictures, undivided.
        known: classes of a checkpoint, for data that do not say.
        progress: whether to show a bar on stderr.

    Raises:
        FileNotFoundError: a folder, file or mask is missing.
        DataError: pictures that cannot be used.
        ValueError: options that do not fit each other or the data.
    """
    options.check()
    layout = layout_of(options.data) if options.data else None
    classes = read_classes(options.classes) if options.classes else None
    notes, broken = [], {}
    if layout is None:
        found, broken = _matched(options)
        divided: Parts = {"all": found}
    else:
        if layout is CAMVID_LAYOUT and classes is None:
            _check_camvid(options, wanted)
        divided = told_apart(layout.parts(Path(options.data)))
    parts = _divided(divided, options, wanted, notes)
    pairs = list(dict.fromkeys(pair for part in wanted for pair in parts[part]))
    form = options.form
    surveyed = survey(pairs, form, progress=progress)
    if form is not None:
        surveyed, form = of_one_type(surveyed, form)
    good = [s for s in surveyed if s.problem is None]
    folder = options.data or options.masks
    if classes is None:
        classes = _told(layout, options, pairs) or known
    if classes is None and good:
        classes = told_classes(good, folder)
        notes.append(f"the masks tell {len(classes)} classes: {', '.join(classes.names[:6])}")
    if classes is not None:
        given, classes = classes, fitted(classes, good)
        if IGNORE in classes.values.keys() - given.values.keys():
            notes.append(f"masks hold 0 and 255 alone: 255 is taken for {classes.names[1]}")
    broken |= problems_of(surveyed, classes)
    if broken and not options.skip_broken:
        raise DataError(_broken(broken, len(pairs)))
    if broken:
        notes.append(f"{_listed(broken)}: left out")
    parts = {part: [pair for pair in parts[part] if pair.image not in broken] for part in wanted}
    for part in wanted:
        if not parts[part]:
            raise DataError(f"{options.data or options.images}: no picture to use for {part}")
    name = layout.name if layout and layout.name[0].isupper() else folder
    found = {s.pair.mask: s for s in surveyed}
    return DataSource(name, classes, parts, found, notes, broken, form)


def _matched(options: DataOptions) -> tuple[list[Pair], dict[Path, str]]:
    """Returns the pairs of two folders, and why the other files cannot be used."""
    found = match(options.images, options.masks)
    broken = {path: f"{path}: has no mask in {options.masks}" for path in found.images}
    broken |= {path: f"{path}: has no picture in {options.images}" for path in found.masks}
    if options.split.endswith((".txt", ".json")) and Path(options.split).is_file():
        named = read_split(options.split)
        if "train" in named:  # pictures in no list need no mask
            names = {name for listed in named.values() for name in listed}
            broken = {p: why for p, why in broken.items() if {p.stem, p.name} & names}
    if not found.pairs:
        raise DataError(
            f"no picture of {options.images} has the name of a mask in {options.masks}, such as "
            f"{found.images[0].name} and {found.masks[0].name}"
        )
    return found.pairs, broken


def _divided(found: Parts, options: DataOptions, wanted: Sequence[str], notes: list[str]) -> Parts:
    """Returns the wanted parts of a data set."""
    if tuple(wanted) == ("all",):
        return {"all": [pair for part in found.values() for pair in part]}
    if "all" in found or options.split:
        pairs = [pair for part in found.values() for pair in part]
        parts = split_pairs(pairs, options.split, options.seed)
        if parts["val"] == parts["train"]:
            few = f"fewer than {FEW} pictures" if len(pairs) < FEW else "no others"
            notes.append(f"{few}: those to train on serve for validation, too")
        else:
            kept = len(parts["val"])
            notes.append(f"kept for validation: {kept} of {len(pairs)} pictures")
    else:
        parts = dict(found)
        if "val" not in parts and "train" in parts:
            parts |= split_pairs(parts["train"], seed=options.seed)
            notes.append(
                f"there is no part for validation: kept for it are {len(parts['val'])} of the "
                "pictures to train on"
            )
    missing = [part for part in wanted if part not in parts]
    if missing:
        there = ", ".join(parts)
        raise ValueError(
            f"{options.data or options.images} has no part {missing[0]}; it has {there}, each of "
            "pictures and masks"
        )
    return parts


def _told(layout: Layout | None, options: DataOptions, pairs: Sequence[Pair]) -> Classes | None:
    if layout is None:
        return None
    return layout.classes(Path(options.data), [pair.mask for pair in pairs])


def _check_camvid(options: DataOptions, wanted: Sequence[str]) -> None:
    parts = [part for part in PARTS if part in wanted or "all" in wanted]
    for part in parts:
        if "all" not in wanted or (Path(options.data) / part).is_dir():
            check_is_camvid(CamVid(options.data, part, no_transform))


def _broken(broken: dict[Path, str], count: int) -> str:
    return (
        f"{len(broken)} files cannot be used, of {count} pictures with masks: {_listed(broken)} "
        "(fastseg data check names all, --skip-broken leaves them out)"
    )


def _listed(broken: dict[Path, str]) -> str:
    texts = list(broken.values())
    return "; ".join(texts[:SHOWN]) + f"; and {len(texts) - SHOWN} others" * (len(texts) > SHOWN)
