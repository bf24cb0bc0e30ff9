"""Pictures and masks are matched by name, and divided."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fastseg.data.pairs import Pair, match, pictures
from fastseg.data.splits import FEW, names_of, read_split, split_pairs, told_apart


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path, format="PNG")
    return folder


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a.jpg", "b.png"], ["a.png", "b.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
        (["01_test.png", "02_test.png"], ["01_manual1.png", "02_manual1.png"]),
        (["img_1.png", "img_2.png"], ["mask_1.png", "mask_2.png"]),
        (["cat.jpg", "dog.jpg"], ["cat_mask.png", "dog_mask.png"]),
        (["cat.jpg"], ["cat_mask.png"]),
        (["a.b.jpg", "a.c.jpg"], ["a.b.png", "a.c.png"]),
    ],
)
def test_names_match(tmp_path, images, masks):
    found = match(touch(tmp_path / "i", *images), touch(tmp_path / "m", *masks))
    assert [p.image.name for p in found.pairs] == [name.rpartition("/")[2] for name in images]
    assert [p.mask.name for p in found.pairs] == [name.rpartition("/")[2] for name in masks]
    assert not found.images
    assert not found.masks


def test_files_without_a_partner_are_told(tmp_path):
    images = touch(tmp_path / "i", "a.png", "b.png", "c.png")
    found = match(images, touch(tmp_path / "m", "b.png", "d.png"))
    assert [p.name for p in found.pairs] == ["b"]
    assert [p.name for p in found.images] == ["a.png", "c.png"]
    assert [p.name for p in found.masks] == ["d.png"]


@pytest.mark.parametrize("names", [("a", "b"), ("a_1", "b_1"), ("img", "mask")])
def test_one_picture_and_one_mask_of_other_names_do_not_match(tmp_path, names):
    folders = [touch(tmp_path / f"{k}", f"{name}.png") for k, name in enumerate(names)]
    assert not match(*folders).pairs


def test_hidden_files_and_other_files_are_no_pictures(tmp_path):
    touch(tmp_path, "a.png", ".b.png", ".hidden/c.png", "notes.txt", "D.PNG")
    assert [p.name for p in pictures(tmp_path)] == ["D.PNG", "a.png"]


@pytest.mark.parametrize(
    ("link", "target"),
    [("i/self", "."), ("i/inner/up", ".."), ("other/back", "../i"), ("i/above", "..")],
)
def test_links_to_folders_are_followed_once(tmp_path, link, target):
    root = touch(tmp_path / "i", "a.png", "inner/b.png")
    touch(tmp_path / "other", "c.png")
    (root / "other").symlink_to(tmp_path / "other")
    (tmp_path / link).symlink_to(target)
    found = [p.relative_to(root).as_posix() for p in pictures(root)]
    assert found == ["a.png", "inner/b.png", "other/c.png"]


def test_several_masks_of_one_picture_are_refused(tmp_path):
    images = touch(tmp_path / "i", "cat.png", "dog.png")
    masks = touch(tmp_path / "m", "cat_mask.png", "cat_mask_1.png", "dog_mask.png")
    said = r"1 of 2 pictures have several masks, .*cat\.png has cat_mask\.png, cat_mask_1\.png$"
    with pytest.raises(ValueError, match=said):
        match(images, masks)


def test_two_pictures_of_one_name_and_no_pictures(tmp_path):
    masks = touch(tmp_path / "m", "a.png")
    with pytest.raises(ValueError, match="has two pictures called a"):
        match(touch(tmp_path / "i", "a.png", "a.jpg"), masks)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none has no pictures"):
        match(tmp_path / "none", masks)
    with pytest.raises(FileNotFoundError, match="missing is not a folder"):
        match(tmp_path / "missing", masks)


def pairs(count):
    return [Pair(f"p{k}", f"i/p{k}.png", f"m/p{k}.png") for k in range(count)]


def test_a_fifth_is_kept_for_validation_by_seed(tmp_path):
    parts = split_pairs(pairs(20), seed=3)
    assert {part: len(found) for part, found in parts.items()} == {"train": 16, "val": 4}
    assert set(parts["train"]).isdisjoint(parts["val"])
    assert split_pairs(pairs(20), seed=3) == parts
    assert split_pairs(pairs(20), seed=4) != parts


@pytest.mark.parametrize("count", range(1, FEW))
def test_few_pictures_serve_twice(count):
    parts = split_pairs(pairs(count))
    assert parts["train"] == parts["val"] == pairs(count)


@pytest.mark.parametrize(
    ("split", "counts"),
    [("0.5", (5, 5)), ("0.7,0.2,0.1", (7, 2, 1)), ("0.99,0.01", (9, 1)), ("0,1", (1, 9))],
)
def test_shares(split, counts):
    parts = split_pairs(pairs(10), split)
    assert tuple(map(len, parts.values())) == counts
    assert sum(counts) == len({pair for found in parts.values() for pair in found})


def test_files_of_names(tmp_path):
    (tmp_path / "val.txt").write_text("p1\np3.png\n")
    named = [p._replace(image=tmp_path / f"{p.name}.png") for p in pairs(5)]
    parts = split_pairs(named, str(tmp_path / "val.txt"))
    assert names_of(parts) == {"train": ["p0", "p2", "p4"], "val": ["p1", "p3"]}
    (tmp_path / "s.json").write_text(json.dumps(names_of(parts)))
    assert split_pairs(named, str(tmp_path / "s.json")) == parts


def test_the_file_of_a_run_with_few_pictures_gives_them_twice_again(tmp_path):
    named = [p._replace(image=tmp_path / f"{p.name}.png") for p in pairs(3)]
    parts = split_pairs(named)
    (tmp_path / "s.json").write_text(json.dumps(names_of(parts)))
    assert split_pairs(named, str(tmp_path / "s.json")) == parts


def in_parts(**names):
    return {
        part: [Pair(name, tmp / f"{name}.png", tmp / f"{name}_mask.png") for name in listed]
        for part, listed in names.items()
        for tmp in (Path(part),)
    }


def test_files_of_names_that_two_parts_have(tmp_path):
    parts = told_apart(in_parts(train=["a", "b", "c"], val=["a", "d"], test=["b"]))
    names = {"train": ["train/a", "train/b", "c"], "val": ["val/a", "d"], "test": ["test/b"]}
    assert names_of(parts) == names
    every = [pair for found in parts.values() for pair in found]
    (tmp_path / "s.json").write_text(json.dumps(names))
    assert split_pairs(every, str(tmp_path / "s.json")) == parts
    for name in ("a", "a.png"):
        (tmp_path / "v.txt").write_text(f"d\n{name}\n")
        said = f"1 that several pictures have, the first is {name}, expected train/a or val/a$"
        with pytest.raises(ValueError, match=said):
            split_pairs(every, str(tmp_path / "v.txt"))


def test_a_picture_in_two_parts_is_one_picture():
    parts = {part: [Pair("a", Path("a.png"), Path("a_mask.png"))] for part in ("train", "val")}
    assert told_apart(parts) == parts


def test_names_come_before_names_of_files(tmp_path):
    (tmp_path / "v.txt").write_text("a.png")
    named = [Pair(name, tmp_path / f"{name}.png", tmp_path / "m") for name in ("a", "a.png")]
    assert split_pairs(named, str(tmp_path / "v.txt"))["val"] == named[1:]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("v.txt", "p9", "names 1 that are not there, the first is p9"),
        ("v.txt", "p0\np1\np2", "leaves no picture to train on"),
        ("s.json", "[1]", "must hold lists of names under train, val, test"),
        ("s.json", "{", "neither a text nor JSON"),
        ("s.json", '{"train": ["p0"], "val": ["p0", "p1"]}', "p0 is to be trained on and"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    named = [p._replace(image=tmp_path / f"{p.name}.png") for p in pairs(3)]
    with pytest.raises(ValueError, match=said):
        split_pairs(named, str(tmp_path / name))


@pytest.mark.parametrize("split", ["2", "0.5,0.6", "-1,2", "nan", "0.1,0.2,0.3,0.4"])
def test_shares_that_do_not_fit(split):
    with pytest.raises(ValueError, match="must be 0 to 1 and add up to 1"):
        split_pairs(pairs(10), split)


def test_a_split_that_is_nothing():
    with pytest.raises(FileNotFoundError, match=r"neither shares, such as 0.8,0.2, nor a file"):
        read_split("nonsense")
