"""Known data sets, told by their folders.

A layout finds the pictures and masks of each part of a data set below a folder, and knows the
classes. It is taken where all of its folders are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastseg.data.class_files import read_classes
from fastseg.data.classes import IGNORE, Classes
from fastseg.data.label_sets import CAMVID, CITYSCAPES, VOC, LabelSet, voc_palette
from fastseg.data.large_label_sets import ADE20K, COCO_STUFF, COCO_STUFF_IDS
from fastseg.data.pairs import Pair, by_name, match_named, pictures
from fastseg.data.splits import PARTS, Parts

CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Stored ids of Cityscapes' 19 classes; the others of 0 to 33 do not count."""


RESEARCH = "research use only"
FLICKR = "pictures under Flickr's terms, annotations for research"
"""What licences ask of whoever trains on the data; checkpoints say so."""


@dataclass(frozen=True)
class Layout:
    """The folders of a data set.

    Args:
        name: the data set.
        folders: paths below the data set's folder, all of which are there.
        parts: a function of the folder that returns the pairs by part; "all" is one to be divided.
            The part "test" is left out where it has no masks, as in data of a contest.
        classes: a function of the folder and the masks that returns the classes; None tells them
            from the masks.
    """

    name: str
    folders: tuple[str, ...]
    parts: Callable[[Path], Parts]
    classes: Callable[[Path, Sequence[Path]], Classes | None]

    def fits(self, root: Path) -> bool:
        """Whether the layout's folders are there."""
        return all(any(root.glob(folder)) for folder in self.folders)


def layout_of(root: str | Path) -> Layout:
    """Returns the layout of a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: its folders are those of no known data set.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    for layout in LAYOUTS:
        if layout.fits(root):
            return layout
    known = "; ".join(f"{layout.name}: {', '.join(layout.folders)}" for layout in LAYOUTS)
    raise ValueError(
        f"{root} has the folders of no known data set: give --images and --masks. Known are {known}"
    )


def _folders(images: str, masks: str, **parts: tuple[str, str]) -> Callable[[Path], Parts]:
    """Returns a function of pairs of folders by part, whose paths have the part's names in them."""

    def find(root: Path) -> Parts:
        found = {}
        for part, (image_part, mask_part) in parts.items():
            folders = root / images.format(image_part), root / masks.format(mask_part)
            if _is_there(part, *folders):
                found[part] = pairs_of(*folders)
        return found

    return find


def _is_there(part: str, images: Path, masks: Path) -> bool:
    """Whether a part is to be read: training needs masks, which those who test may not have."""
    return images.is_dir() and (part != "test" or masks.is_dir())


def pairs_of(images: Path, masks: Path, wanted: Callable[[Path], bool] | None = None) -> list[Pair]:
    """Returns the pairs of two folders of a known data set.

    Raises:
        FileNotFoundError: a folder or a mask is missing.
        ValueError: two pictures or two masks have one name.
    """
    named = []
    for folder in (images, masks):
        found = [p for p in pictures(folder) if wanted is None or folder is images or wanted(p)]
        named.append(by_name(found, folder))
    matches = match_named(*named)
    if matches.images or not matches.pairs:
        first = matches.images[0].name if matches.images else "all"
        raise FileNotFoundError(
            f"{len(matches.images)} pictures of {images} have no mask in {masks}: {first}"
        )
    return matches.pairs


def _voc(root: Path) -> Parts:
    lists = root / "ImageSets" / "Segmentation"
    lists = lists if lists.is_dir() else root
    images, masks = (
        by_name(pictures(folder), folder, lambda path: path.stem)
        for folder in (root / "JPEGImages", root / "SegmentationClass")
    )
    parts: Parts = {}
    for part in ("train", "val"):
        if (lists / f"{part}.txt").is_file():
            names = (lists / f"{part}.txt").read_text(errors="replace").split()
            missing = [n for n in names if n not in images or n not in masks]
            if missing:
                raise FileNotFoundError(f"{lists / f'{part}.txt'} names {missing[0]}: not there")
            parts[part] = [Pair(name, images[name], masks[name]) for name in names]
    both = sorted(images.keys() & masks.keys())
    return parts or {"all": [Pair(name, images[name], masks[name]) for name in both]}


def _cityscapes(root: Path) -> Parts:
    found = {}
    for part in ("train", "val"):
        images, masks = root / "leftImg8bit" / part, root / "gtFine" / part
        if images.is_dir():
            for kind in ("_labelTrainIds", "_labelIds", "_color"):
                if any(masks.rglob(f"*{kind}.png")):
                    found[part] = _cityscapes_pairs(images, masks, f"{kind}.png")
                    break
            else:
                raise FileNotFoundError(f"{masks} has no masks called ..._labelIds.png")
    return found


def _cityscapes_pairs(images: Path, masks: Path, kind: str) -> list[Pair]:
    pairs = []
    for image in pictures(images):
        name = image.relative_to(images).as_posix().replace("_leftImg8bit.png", "")
        mask = masks / f"{name}_gtFine{kind}"
        if not mask.is_file():
            raise FileNotFoundError(f"{image} has no mask at {mask}")
        pairs.append(Pair(name, image, mask))
    return pairs


def _coco_stuff(root: Path) -> Parts:
    masks = "annotations" if (root / "annotations" / "train2017").is_dir() else "stuffthingmaps"
    images = "images" if (root / "images").is_dir() else "."
    found = {}
    for part in ("train", "val"):
        folder, own = root / images / f"{part}2017", root / masks / f"{part}2017"
        if folder.is_dir():
            trained = any(own.glob("*_labelTrainIds.png"))
            found[part] = pairs_of(
                folder, own, lambda p, t=trained: ("_labelTrainIds" in p.stem) == t
            )
    return found


def _drive(root: Path) -> Parts:
    found = {}
    for part, folder in (("train", "training"), ("test", "test")):
        for images, masks in (("images", "1st_manual"), (".", f"../{folder}_manual1")):
            place = root / folder
            if (place / masks).is_dir():
                found[part] = _numbered_pairs(place / images, place / masks)
                break
    return {"all": found["test"]} if list(found) == ["test"] else found


def _numbered_pairs(images: Path, masks: Path) -> list[Pair]:
    """Returns the pairs of DRIVE, whose names begin with one number."""
    by_number = by_name(pictures(masks), masks, _number)
    pairs = []
    for name, image in by_name(pictures(images), images, lambda path: path.stem).items():
        if _number(image) not in by_number:
            raise FileNotFoundError(f"{image} has no mask in {masks}")
        pairs.append(Pair(name, image, by_number[_number(image)]))
    return pairs


def _number(path: Path) -> str:
    """Returns the number that a name of DRIVE begins with."""
    return path.stem.partition("_")[0]


def _numbered(name: str, *names: str) -> Callable[[Path, Sequence[Path]], Classes]:
    labels = LabelSet(name, names, voc_palette(len(names)))
    return lambda root, masks: Classes.of_labels(labels, {0: 0, 255: 1}, RESEARCH)


def _cityscapes_classes(root: Path, masks: Sequence[Path]) -> Classes:
    if any("_labelTrainIds" in path.stem for path in masks):
        return Classes.of_labels(CITYSCAPES, licence=RESEARCH)
    ids = dict.fromkeys(range(34), IGNORE) | {s: k for k, s in enumerate(CITYSCAPES_IDS)}
    void = {(0, 0, 0): IGNORE, (20, 20, 20): IGNORE, (111, 74, 0): IGNORE, (81, 0, 81): IGNORE}
    return Classes.of_labels(CITYSCAPES, ids | void, RESEARCH)


def _ade20k_classes(root: Path, masks: Sequence[Path]) -> Classes:
    ids = {0: IGNORE} | {k + 1: k for k in range(len(ADE20K.classes))}
    return Classes.of_labels(ADE20K, ids, RESEARCH)


def _coco_stuff_classes(root: Path, masks: Sequence[Path]) -> Classes:
    if any("_labelTrainIds" in path.stem for path in masks):
        return Classes.of_labels(COCO_STUFF, licence=FLICKR)
    ids = dict.fromkeys(range(182), IGNORE) | {s: k for k, s in enumerate(COCO_STUFF_IDS)}
    return Classes.of_labels(COCO_STUFF, ids, FLICKR)


def _own_classes(root: Path, masks: Sequence[Path]) -> Classes | None:
    for name in ("classes.txt", "classes.json", "names.txt"):
        if (root / name).is_file():
            return read_classes(root / name)
    return None


def _own(images: str, masks: str) -> Layout:
    def find(root: Path) -> Parts:
        if not (root / images / "train").is_dir():
            return {"all": pairs_of(root / images, root / masks)}
        folders = {part: (root / images / part, root / masks / part) for part in PARTS}
        return {part: pairs_of(*both) for part, both in folders.items() if _is_there(part, *both)}

    return Layout(f"{images} and {masks}", (images, masks), find, _own_classes)


CAMVID_LAYOUT = Layout(
    "CamVid",
    ("train", "trainannot"),
    _folders(
        "{}",
        "{}",
        train=("train", "trainannot"),
        val=("val", "valannot"),
        test=("test", "testannot"),
    ),
    lambda root, masks: Classes.of_labels(
        CAMVID, {**{k: k for k in range(11)}, 11: IGNORE}, RESEARCH
    ),
)
LAYOUTS = (
    CAMVID_LAYOUT,
    Layout(
        "PASCAL VOC",
        ("JPEGImages", "SegmentationClass"),
        _voc,
        lambda root, masks: Classes.of_labels(
            VOC, {**{k: k for k in range(21)}, (224, 224, 192): IGNORE}, FLICKR
        ),
    ),
    Layout("Cityscapes", ("leftImg8bit", "gtFine"), _cityscapes, _cityscapes_classes),
    Layout(
        "ADE20K",
        ("images/training", "annotations/training"),
        _folders(
            "images/{}",
            "annotations/{}",
            train=("training", "training"),
            val=("validation", "validation"),
        ),
        _ade20k_classes,
    ),
    Layout(
        "COCO-Stuff", ("*/train2017", "annotations/train2017"), _coco_stuff, _coco_stuff_classes
    ),
    Layout("COCO-Stuff", ("stuffthingmaps/train2017",), _coco_stuff, _coco_stuff_classes),
    Layout(
        "ISBI 2012",
        ("train", "trainlabel"),
        lambda root: {"all": pairs_of(root / "train", root / "trainlabel")},
        _numbered("ISBI 2012", "membrane", "cell"),
    ),
    Layout(
        "DRIVE",
        ("test*", "*/1st_manual"),
        _drive,
        _numbered("DRIVE", "background", "vessel"),
    ),
    Layout(
        "DRIVE",
        ("test", "test_manual1"),
        _drive,
        _numbered("DRIVE", "background", "vessel"),
    ),
    _own("images", "masks"),
    _own("images", "labels"),
    _own("images", "annotations"),
    _own("img", "mask"),
)
"""Layouts in the order in which they are tried."""
