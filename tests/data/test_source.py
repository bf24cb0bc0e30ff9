"""Data sets by layout and by names, with masks of every kind, and what is broken in them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastseg.data import Classes, DataOptions, EvalTransform, PictureFolder, open_data
from fastseg.data.classes import IGNORE
from fastseg.data.large_label_sets import ADE20K, COCO_STUFF, COCO_STUFF_IDS
from fastseg.data.layouts import CITYSCAPES_IDS, layout_of
from fastseg.data.source import DataError
from fastseg.data.survey import class_counts
from tests.data import own_pictures as own
from tests.data.own_pictures import make_pictures, true_ids

KINDS = [
    (own.grey, 3),
    (own.with_palette, 3),
    (own.in_colours, 3),
    (own.with_alpha, 3),
    (own.grey_in_rgb, 3),
    (own.sixteen_bits, 3),
    (own.binary, 2),
    (own.one_bit, 2),
]


def options(root, **changes):
    given = {"images": f"{root}/img", "masks": f"{root}/mask", "classes": f"{root}/names.txt"}
    return DataOptions(**{**given, **changes})


def name_colours(root, classes):
    rows = (f"class {chr(97 + k)} {r} {g} {b}" for k, (r, g, b) in enumerate(own.COLOURS[:classes]))
    (root / "names.txt").write_text("\n".join(rows))


@pytest.mark.parametrize(("mask", "classes"), KINDS)
@pytest.mark.parametrize("coloured", [False, True])
def test_masks_of_every_kind_are_read_as_their_classes(tmp_path, mask, classes, coloured):
    root = make_pictures(tmp_path / "own", classes=classes, mask=mask)
    if coloured:
        name_colours(root, classes)
    elif mask in (own.in_colours, own.with_alpha):
        with pytest.raises(DataError, match="masks in colours need a file of classes with"):
            open_data(options(root), ("all",))
        return
    source = open_data(options(root), ("all",))
    assert source.classes.names == tuple(f"class {chr(97 + k)}" for k in range(classes))
    dataset = PictureFolder(source.parts["all"], source.classes, EvalTransform(32))
    for k in range(len(dataset)):
        _, label = dataset[k]
        np.testing.assert_array_equal(label, true_ids(k, classes, tuple(label.shape)))


def test_classes_are_told_by_the_masks(tmp_path):
    for k, (mask, classes, names) in enumerate(
        [
            (own.binary, 2, ("background", "foreground")),
            (own.grey, 3, ("class 0", "class 1", "class 2")),
            (own.with_palette, 3, ("class 0", "class 1", "class 2")),
        ]
    ):
        root = make_pictures(tmp_path / f"{k}", classes=classes, mask=mask)
        source = open_data(options(root, classes=""), ("all",))
        assert source.classes.names == names
    assert source.classes.palette == own.COLOURS[:3]
    root = make_pictures(tmp_path / "rgb", mask=own.in_colours)
    with pytest.raises(ValueError, match=r"in colours, rgb\(0, 0, 0\), rgb\(200, 10, 10\): a file"):
        open_data(options(root, classes=""))
    root = make_pictures(
        tmp_path / "shades", mask=lambda ids: own.grey(np.indices(ids.shape).sum(0))
    )
    with pytest.raises(ValueError, match="different ids, as pictures of shades would"):
        open_data(options(root, classes=""))


def test_the_meaning_of_255_is_said(tmp_path):
    root = make_pictures(tmp_path / "binary", mask=own.binary)
    notes = open_data(options(root)).notes
    assert "masks hold 0 and 255 alone: 255 is taken for class b" in notes
    root = make_pictures(tmp_path / "ids", mask=lambda ids: own.grey(np.where(ids, ids, 255)))
    source = open_data(options(root), ("all",))
    assert not any("255" in note for note in source.notes)
    pixels, _ = class_counts(source.surveyed_part("all"), source.classes)
    assert pixels[0] == 0 < pixels[1]


def test_many_classes(tmp_path):
    root = make_pictures(tmp_path / "own", classes=150)
    source = open_data(options(root), ("all",))
    assert len(source.classes) == 150


def test_broken_files_are_named(tmp_path):
    root = make_pictures(tmp_path / "own", 8)
    Image.new("L", (3, 3)).save(root / "mask/p1.png")
    (root / "img/p2.png").write_text("no picture")
    (root / "mask/p3.png").unlink()
    (root / "mask/q.png").write_bytes((root / "mask/p4.png").read_bytes())
    own.grey(np.full((40, 56), 7)).save(root / "mask/p0.png")
    whole = (root / "img/p6.png").read_bytes()
    (root / "img/p6.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="6 files cannot be used, of 7 pictures") as error:
        open_data(options(root))
    assert "\n" not in str(error.value)
    source = open_data(options(root, skip_broken=True), ("all",))
    problems = {path.name: why for path, why in source.broken.items()}
    for name, why in {
        "p0.png": "holds 7, which is no class: the 2 classes have the ids 0, 1",
        "p1.png": "is 3x3, its picture 44x52",
        "p2.png": "not an image",
        "p3.png": "has no mask",
        "q.png": "has no picture",
        "p6.png": "damaged or truncated",
    }.items():
        assert why in problems.pop(name), name
    assert not problems
    assert [p.name for p in source.parts["all"]] == ["p4", "p5", "p7"]


def test_nothing_that_can_be_used(tmp_path):
    root = make_pictures(tmp_path / "own", 2)
    for path in (root / "img").iterdir():
        path.write_text("no picture")
    with pytest.raises(DataError, match="no picture to use for train"):
        open_data(options(root, skip_broken=True))
    for path in (root / "mask").iterdir():
        path.rename(path.with_name(f"other{path.name}"))
    with pytest.raises(DataError, match=r"no picture of .* has the name of a mask in"):
        open_data(options(root))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give either --data DIR, or --images DIR and --masks DIR"),
        ({"data": "a", "images": "b", "masks": "c"}, "give either --data DIR"),
        ({"images": "b"}, "--images also needs --masks"),
        ({"masks": "b"}, "--masks also needs --images"),
    ],
)
def test_options_that_do_not_fit(given, said):
    with pytest.raises(ValueError, match=said):
        open_data(DataOptions(**given))


def save(root, name, ids, size=(6, 8)):
    """A picture, or with ids a mask whose first pixels are those."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, np.uint8)
    if ids is not None:
        pixels.flat[: len(ids)] = ids
    Image.fromarray(pixels).save(path, format="PNG")


def lay_out(root, images, masks, ids):
    """A picture and a mask under each of the names."""
    for name in images:
        save(root, name, None)
    for name in masks:
        save(root, name, ids)


CASES = {
    "PASCAL VOC": (["JPEGImages/a.jpg", "JPEGImages/b.jpg"], ["SegmentationClass/a.png"], (0, 20)),
    "Cityscapes": (
        [f"leftImg8bit/{part}/x/a_leftImg8bit.png" for part in ("train", "val")],
        [f"gtFine/{part}/x/a_gtFine_labelIds.png" for part in ("train", "val")],
        (7, 33, 0),
    ),
    "ADE20K": (
        ["images/training/a.jpg", "images/validation/b.jpg"],
        ["annotations/training/a.png", "annotations/validation/b.png"],
        (1, 150, 0),
    ),
    "COCO-Stuff": (
        ["images/train2017/a.jpg", "images/val2017/b.jpg"],
        ["annotations/train2017/a.png", "annotations/val2017/b.png"],
        (0, 181, 11),
    ),
    "ISBI 2012": (
        ["train/0.png", "train/1.png"],
        ["trainlabel/0.png", "trainlabel/1.png"],
        (0, 255),
    ),
    "DRIVE": (
        ["training/images/21_training.tif", "test/images/01_test.tif"],
        ["training/1st_manual/21_manual1.gif", "test/1st_manual/01_manual1.gif"],
        (0, 255),
    ),
    "images and masks": (["images/a.jpg"], ["masks/a.png"], (0, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_known_layouts(tmp_path, name):
    images, masks, ids = CASES[name]
    lay_out(tmp_path, images, masks, ids)
    assert layout_of(tmp_path).name == name
    source = open_data(DataOptions(data=str(tmp_path)), ("all",))
    classes = len(source.classes)
    first = source.surveyed_part("all")[0].class_pixels(source.classes)
    assert {0, classes - 1} <= first.keys()
    assert len(ids) == 2 or IGNORE in first
    assert first.keys() <= {0, classes - 1, IGNORE}


def test_cityscapes_trains_by_train_ids_and_colours_too(tmp_path):
    images, masks, _ = CASES["Cityscapes"]
    for kind, ids in (("labelTrainIds", (0, 18, 255)), ("color", None)):
        root = tmp_path / kind
        lay_out(root, images, [name.replace("labelIds", kind) for name in masks], ids or (0,))
        source = open_data(DataOptions(data=str(root)))
        assert len(source.classes) == 19
        found = source.surveyed_part("train")[0].class_pixels(source.classes)
        assert found.keys() == ({0, 18, IGNORE} if ids else {IGNORE})


def test_parts_of_layouts(tmp_path):
    lay_out(tmp_path, *CASES["PASCAL VOC"])
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "val.txt").write_text("a\n")
    parts = layout_of(tmp_path).parts(tmp_path)
    assert {part: len(pairs) for part, pairs in parts.items()} == {"train": 1, "val": 1}
    (tmp_path / "val.txt").write_text("b\n")
    with pytest.raises(FileNotFoundError, match=r"val.txt names b: not there"):
        open_data(DataOptions(data=str(tmp_path)))


def test_own_folders_may_have_parts_and_classes(tmp_path):
    for part in ("train", "val"):
        lay_out(tmp_path, [f"images/{part}/a.jpg"], [f"masks/{part}/a.png"], (0, 2))
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    source = open_data(DataOptions(data=str(tmp_path)))
    assert source.classes.names == ("x", "y", "z")
    assert [len(source.parts[part]) for part in ("train", "val")] == [1, 1]
    with pytest.raises(ValueError, match="has no part test; it has train, val"):
        open_data(DataOptions(data=str(tmp_path)), ("test",))


def test_unknown_folders(tmp_path):
    with pytest.raises(ValueError, match=r"the folders of no known data set: give --images"):
        open_data(DataOptions(data=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="none is not a folder"):
        open_data(DataOptions(data=str(tmp_path / "none")))


def test_a_layout_takes_other_classes(tmp_path):
    """Somebody's own masks in CamVid's folders train as what they are."""
    for part in ("train", "val"):
        lay_out(tmp_path, [f"{part}/a.png"], [f"{part}annot/a.png"], (0, 1))
    (tmp_path / "own.txt").write_text("soil\nweed\n")
    source = open_data(DataOptions(data=str(tmp_path), classes=str(tmp_path / "own.txt")))
    assert source.classes.names == ("soil", "weed")


def test_label_sets_have_as_many_ids_as_classes():
    assert (len(ADE20K.classes), len(COCO_STUFF.classes), len(COCO_STUFF_IDS)) == (150, 171, 171)
    assert len(set(ADE20K.classes)) == 150
    assert len(set(COCO_STUFF.classes)) == 171
    assert len(CITYSCAPES_IDS) == 19


@pytest.mark.parametrize(
    ("folder", "name", "classes", "pictures"),
    [
        ("isbi2012", "ISBI 2012", ("membrane", "cell"), (24, 6)),
        ("drive", "DRIVE", ("background", "vessel"), (16, 4)),
        ("voc22", "PASCAL VOC", None, (10, 12)),
    ],
)
def test_real_data(shared_data, folder, name, classes, pictures):
    source = open_data(DataOptions(data=str(shared_data("data", folder))))
    assert source.name == name
    assert classes in (None, source.classes.names)
    assert tuple(len(source.parts[part]) for part in ("train", "val")) == pictures
    pixels, _ = class_counts(source.surveyed_part("train"), source.classes)
    assert 0 < pixels[0] < pixels.sum()


def test_classes_of_a_checkpoint_are_taken_where_the_data_do_not_say(tmp_path):
    root = make_pictures(tmp_path / "own", mask=own.binary)
    known = Classes(("x", "y"), ((0, 0, 0), (9, 9, 9)), {0: 0, 1: 1})
    source = open_data(options(root, classes=""), ("all",), known=known)
    assert source.classes.names == ("x", "y")
    assert source.classes.class_of(255) == 1


@pytest.mark.parametrize("name", [name for name in CASES if name != "images and masks"])
def test_known_data_say_what_they_are_for(tmp_path, name):
    lay_out(tmp_path, *CASES[name])
    licence = open_data(DataOptions(data=str(tmp_path)), ("all",)).classes.licence
    assert "research" in licence
