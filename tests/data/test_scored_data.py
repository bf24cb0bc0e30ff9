"""The pictures that ``fastseg evaluate`` scores."""

from __future__ import annotations

import argparse

import pytest

from fastseg.cli.options import add_data_options
from fastseg.cli.scored_data import add_split_option, scored_data
from tests.data.own_pictures import make_pictures
from tests.data.test_layout_parts import lay_out_parts


def scored(*arguments, **others):
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    add_split_option(parser)
    options = argparse.Namespace(**vars(parser.parse_args(list(map(str, arguments)))), **others)
    source, part = scored_data(options, None)
    return [pair.name for pair in source.parts[part]]


def test_what_is_left_out_is_said(tmp_path, capsys):
    root = make_pictures(tmp_path / "own", 3)
    (root / "img/p1.png").write_text("no picture")
    arguments = ("--images", root / "img", "--masks", root / "mask", "--skip-broken")
    assert scored(*arguments) == ["p0", "p2"]
    assert "fastseg: " in (err := capsys.readouterr().err)
    assert "p1.png: not an image" in err
    assert err.count("left out") == 1


def test_shares_are_refused(tmp_path):
    root = make_pictures(tmp_path / "own")
    arguments = ("--images", root / "img", "--masks", root / "mask", "--split", "0.5,0.5")
    with pytest.raises(ValueError, match=r"--split 0.5,0.5: chooses .* such as the run's split"):
        scored(*arguments)
    assert len(scored(*arguments, tune=True)) == 3, "a search of the CRF's numbers may have them"


def test_a_part_that_would_be_drawn_is_refused(tmp_path):
    lay_out_parts(tmp_path, train=6, test=2)
    for split in ((), ("--split", "val")):
        with pytest.raises(ValueError, match="--split val: chooses pictures at random"):
            scored("--data", tmp_path, *split)
    assert scored("--data", tmp_path, "--split", "test") == ["p0", "p1"]
