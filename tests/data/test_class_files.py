"""Files of classes: all forms that data sets have, and what is wrong with them."""

import json

import pytest

from fastseg.data import Classes, read_classes
from fastseg.data.classes import IGNORE
from fastseg.data.label_sets import voc_palette

RGB = {"road": (128, 64, 128), "grass": (0, 128, 0)}
COLOURED = {(128, 64, 128): 0, (0, 128, 0): 1}
TEXTS = {
    "road\ngrass\n": None,
    "\ufeffroad\r\n\r\n# a comment\r\ngrass": None,
    "0 road\n1 grass": None,
    "1: grass\n0: road": None,
    "road 128 64 128\ngrass 0 128 0": RGB,
    "128 64 128\troad\n0 128 0\tgrass": RGB,
    "name,r,g,b\nroad,128,64,128\ngrass,0,128,0": RGB,
    "id,name,r,g,b\n1,grass,0,128,0\n0,road,128,64,128": RGB,
    "0 128 64 128 road\n1 0 128 0 grass": RGB,
}
JSONS = [
    (["road", "grass"], None),
    ({"classes": ["road", "grass"]}, None),
    ({"0": "road", "1": "grass"}, None),
    ({"road": 0, "grass": 1}, None),
    ({"road": [128, 64, 128], "grass": [0, 128, 0]}, RGB),
    ({"classes": ["road", "grass"], "palette": [[128, 64, 128], [0, 128, 0]]}, RGB),
    ([{"name": "grass", "id": 1}, {"name": "road", "id": 0}], None),
    ([{"name": "road", "color": "#804080"}, {"name": "grass", "color": [0, 128, 0]}], RGB),
]


def check(classes, colours):
    assert classes.names == ("road", "grass")
    assert classes.palette == tuple(colours.values() if colours else voc_palette(2))
    assert classes.values == {0: 0, 1: 1, **(COLOURED if colours else {})}


@pytest.mark.parametrize("text", TEXTS)
def test_every_form_of_text(tmp_path, text):
    path = tmp_path / "names.txt"
    path.write_text(text, encoding="utf-8")
    check(read_classes(path), TEXTS[text])


@pytest.mark.parametrize(("found", "colours"), JSONS)
def test_every_form_of_json(tmp_path, found, colours):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(found))
    check(read_classes(path), colours)


def test_names_may_hold_numbers_spaces_and_letters_of_any_alphabet(tmp_path):
    names = ["class 1", "2nd floor", "traffic light", "Straße", "道路"]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    assert list(read_classes(tmp_path / "names.txt").names) == names


def test_void_classes_do_not_count(tmp_path):
    (tmp_path / "names.txt").write_text(
        "Unlabelled 0 0 0\nroad 128 64 128\nvoid 9 9 9\ngrass 1 2 3"
    )
    classes = read_classes(tmp_path / "names.txt")
    assert classes.names == ("road", "grass")
    assert [classes.class_of(k) for k in (0, 1, 2, 3, 255)] == [IGNORE, 0, IGNORE, 1, IGNORE]
    assert classes.class_of((9, 9, 9)) == IGNORE
    assert classes.class_of((1, 2, 3)) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "lists no classes"),
        ("a.txt", "road\nroad", "has the name road more than once"),
        ("a.txt", "0 road\n0 grass", "has the id 0 more than once"),
        ("a.txt", "road 1 2 3\ngrass 1 2 3", r"has the colour \(1, 2, 3\) more than once"),
        ("a.txt", "\n".join(f"c{k}" for k in range(300)), "lists 300 classes; .*0 to 255"),
        ("a.txt", "road 1 2 300\ngrass 1 2 3", "a colour must be three numbers of 0 to 255"),
        ("a.json", "[", "is no JSON"),
        ("a.json", "3", "must hold a list or a dict of classes, got int"),
        ("a.json", "[3]", "a class must be a name or a dict with a name, got 3"),
        ("a.json", '[{"id": 3}]', "lacks 'name'"),
        ("a.json", '[{"name": "a", "id": "x"}]', "an id must be a whole number, got 'x'"),
        ("a.json", '[{"name": "a", "color": [1, 2]}]', "a colour must be three numbers"),
        (
            "a.json",
            '{"classes": ["a", "b"], "palette": [[0, 0, 0]]}',
            "its palette has 1 colours for 2 classes",
        ),
        ("a.json", '{"names": ["a"], "palette": 5}', "its palette must be a list .*, got 5"),
        ("a.json", '{"names": ["a"], "colors": {"a": 1}}', "its palette must be a list"),
        ("a.json", '[{"name": "a", "color": 5}]', "a colour must be three numbers .*, got 5"),
        ("a.json", '{"\\u00b2": "a"}', "item '\u00b2': 'a' is neither an id"),
        ("a.json", "[" * 100_000, "its JSON is nested too deeply, expected a list or a dict"),
        ("a.json", '{"a": true}', "item 'a': True is neither an id, a colour nor a name"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: .*{said}|{name}: {said}"):
        read_classes(tmp_path / name)


def test_files_that_are_not_there_or_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of classes at"):
        read_classes(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"a.txt: classes are a text, CSV or JSON file"):
        read_classes(tmp_path / "a.txt")


def test_a_checkpoint_holds_all_of_the_classes():
    classes = Classes(("a", "b"), ((0, 0, 0), (1, 2, 3)), {0: 0, 255: 1, (1, 2, 3): 1, 7: IGNORE})
    kept = Classes.from_metadata(classes.as_metadata())
    assert (kept.names, kept.palette, kept.values) == (
        classes.names,
        classes.palette,
        classes.values,
    )
