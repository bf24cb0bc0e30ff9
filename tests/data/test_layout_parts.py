"""Parts of known data sets: names that several of them have, masks that are not there."""

from __future__ import annotations

import json

import pytest

from fastseg.data import DataOptions, open_data
from fastseg.data.layouts import layout_of
from fastseg.data.splits import names_of
from tests.data.test_source import CASES, lay_out


def lay_out_parts(root, **counts):
    """Pictures p0, p1, ... and their masks in each part."""
    for part, count in counts.items():
        names = [f"{part}/p{k}" for k in range(count)]
        images, masks = ([f"{f}/{name}.png" for name in names] for f in ("images", "masks"))
        lay_out(root, images, masks, (0, 1))
    return DataOptions(data=str(root))


@pytest.mark.parametrize("counts", [(3, 3, 0), (4, 2, 0), (4, 2, 3)])
def test_the_file_of_a_run_gives_its_parts_again(tmp_path, counts):
    root = tmp_path / "own"
    there = {part: n for part, n in zip(("train", "val", "test"), counts, strict=True) if n}
    given = lay_out_parts(root, **there)
    parts = open_data(given).parts
    (tmp_path / "split.json").write_text(json.dumps(names_of(parts)))
    again = open_data(DataOptions(data=str(root), split=f"{tmp_path}/split.json")).parts
    assert again == parts
    assert {pair.image.parent.name for pair in again["train"]} == {"train"}
    assert {pair.image.parent.name for pair in again["val"]} == {"val"}


def test_pictures_keep_the_names_that_predicted_masks_have(tmp_path):
    source = open_data(lay_out_parts(tmp_path, train=2, val=2))
    assert [pair.name for pair in source.parts["val"]] == ["p0", "p1"]


def test_training_needs_no_masks_of_test(tmp_path):
    given = lay_out_parts(tmp_path, train=3, val=2, test=2)
    for mask in (tmp_path / "masks/test").iterdir():
        mask.unlink()
    (tmp_path / "masks/test").rmdir()
    assert [len(found) for found in open_data(given).parts.values()] == [3, 2]
    with pytest.raises(ValueError, match="no part test; it has train, val, each of pictures and"):
        open_data(given, ("test",))
    (tmp_path / "masks/val").rename(tmp_path / "masks/other")
    with pytest.raises(FileNotFoundError, match=r"masks/val is not a folder"):
        open_data(given)


def test_known_data_need_no_masks_of_test(tmp_path):
    parts = ("train", "val", "test")
    images = [f"{part}/a.png" for part in parts]
    lay_out(tmp_path, images, [f"{part}annot/a.png" for part in parts[:2]], (0, 1))
    assert list(layout_of(tmp_path).parts(tmp_path)) == ["train", "val"]


def test_a_part_for_validation_is_chosen_by_the_seed(tmp_path):
    given = lay_out_parts(tmp_path, train=20, test=1)
    chosen = {
        tuple(pair.name for pair in open_data(DataOptions(given.data, seed=seed)).parts["val"])
        for seed in range(5)
    }
    assert len(chosen) > 1
    assert all(len(names) == 4 for names in chosen)


@pytest.mark.parametrize(
    ("layout", "twin", "name"),
    [
        ("images and masks", "images/a.png", "a"),
        ("images and masks", "masks/a.tif", "a"),
        ("PASCAL VOC", "JPEGImages/a.png", "a"),
        ("PASCAL VOC", "SegmentationClass/a.tif", "a"),
        ("DRIVE", "training/images/21_training.png", "21_training"),
        ("DRIVE", "training/1st_manual/21_manual2.gif", "21"),
    ],
)
def test_two_files_of_one_name_are_refused(tmp_path, layout, twin, name):
    images, masks, ids = CASES[layout]
    lay_out(tmp_path, images, [*masks, twin], ids)
    with pytest.raises(ValueError, match=f"has two pictures called {name}: "):
        open_data(DataOptions(data=str(tmp_path)), ("all",))
