"""Files of options: named like the flags, below the command line, kept in a run's folder."""

from __future__ import annotations

import argparse
import json

import pytest

from fastseg.cli import COMMANDS, main, segment
from fastseg.cli.options import with_config
from fastseg.train.__main__ import main as train
from fastseg.zoo import checkpoint
from tests.data.own_pictures import make_pictures

SETTINGS = {
    "images": "own/img",
    "masks": "own/mask",
    "classes": "own/names.txt",
    "model": "unet",
    "options": {"width": 4, "depth": 2, "upsampling": "bilinear"},
    "epochs": 1,
    "batch-size": 2,
    "augment": ["rotate=5", "flip=0"],
    "crop": [32, 48],
    "bf16": True,
    "contiguous": False,
    "clip": None,
    "threads": 1,
}


DATA = ["--images", "own/img", "--masks", "own/mask", "--out", "x"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_pictures(tmp_path / "own", 5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def as_yaml(settings):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_dump(settings)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_run_by_a_file_of_options(folder, kind):
    text = json.dumps(SETTINGS) if kind == "json" else as_yaml(SETTINGS)
    (folder / f"run.{kind}").write_text(text)
    arguments = ["train", "--config", f"run.{kind}", "--out", "run", "--lr", "0.02"]
    assert main(arguments) == 0
    kept = json.loads((folder / "run/config.json").read_text())
    for name, value in SETTINGS.items():
        if name not in ("clip", "augment", "contiguous"):
            assert kept[name.replace("-", "_")] == value
    assert kept["lr"] == 0.02
    assert "rotate=5" in kept["augment"]
    assert "scale=0.75:1.5" in kept["augment"], "the resolved ones are kept"


def test_the_file_of_a_run_gives_the_run_again(folder):
    (folder / "run.json").write_text(json.dumps(SETTINGS))
    assert main(["train", "--config", "run.json", "--out", "one"]) == 0
    assert main(["train", "--config", "one/config.json", "--out", "two"]) == 0
    one, two = (checkpoint.load(f"{run}/last.pt") for run in ("one", "two"))
    assert one["history"] == two["history"]
    assert {**one["config"], "out": ""} == {**two["config"], "out": ""}


def test_the_command_line_wins(folder):
    (folder / "run.json").write_text(json.dumps({**SETTINGS, "epochs": 7, "out": "one"}))
    assert main(["train", "--epochs", "1", "--config", "run.json"]) == 0
    assert json.loads((folder / "one/config.json").read_text())["epochs"] == 1


def test_a_list_ends_before_the_command_lines_own_words(tmp_path, monkeypatch):
    """Otherwise it would go on with the pictures."""
    (tmp_path / "own.json").write_text(json.dumps({"option": ["a=1"], "scales": [0.5, 1.0]}))
    parser = argparse.ArgumentParser()
    segment.add_arguments(parser)
    given = ["a.png", "b.png", "--config", str(tmp_path / "own.json"), "--flip"]
    options = parser.parse_args(with_config(given, parser))
    assert (options.image, options.scales) == (["a.png", "b.png"], [0.5, 1.0])
    assert options.flip


@pytest.mark.parametrize("main_of", [main, train])
def test_flags_are_not_cut_short(folder, capsys, main_of):
    """A file that --conf names would not be read, and nobody would say so."""
    (folder / "run.json").write_text(json.dumps(SETTINGS))
    command = ["train"] * (main_of is main)
    with pytest.raises(SystemExit) as end:
        main_of([*command, *DATA, "--conf", "run.json"])
    assert end.value.code == 2
    assert "unrecognized arguments: --conf run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense: 1", "there is no option 'nonsense'; there are accumulate, "),
        ("- 1", "must hold options and their values, got list"),
        ("a: [", "is no YAML"),
        ("bf16: 3", "bf16 must be true or false, got 3"),
        ("config: other.yaml", "there is no option 'config'"),
        ("epochs: many", "argument --epochs: invalid int value: 'many'"),
        ("loss: nonsense", "loss must be a sum of"),
    ],
)
def test_what_a_file_must_not_hold(folder, capsys, text, said):
    pytest.importorskip("yaml")
    (folder / "run.yaml").write_text(text)
    try:
        status = main(
            [
                "train",
                *["--images", "own/img", "--masks", "own/mask", "--out", "x"],
                "--config=run.yaml",
            ]
        )
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[", "\xff"])
def test_json_that_is_none(folder, capsys, text):
    (folder / "run.json").write_bytes(text.encode("latin1"))
    assert main(["train", "--config", "run.json"]) == 2
    assert "run.json: " in capsys.readouterr().err


def test_a_file_that_is_not_there(folder, capsys):
    assert main(["segment", "x.png", "--config", "none.yaml"]) == 2
    assert "no file of options at none.yaml" in capsys.readouterr().err


def test_yaml_needs_its_package(folder, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (folder / "run.yaml").write_text("epochs: 1")
    assert main(["train", "--config", "run.yaml"]) == 2
    assert "run.yaml: needs PyYAML (pip install pyyaml), or give JSON" in capsys.readouterr().err


def test_without_a_file_a_command_line_stays_as_it_is():
    assert with_config(["train", "--lr", "1"], None, positional=1) == ["train", "--lr", "1"]


def test_the_version_and_examples(capsys):
    from fastseg import __version__

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"fastseg {__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert command.__name__.rpartition(".")[2] in shown
    assert "fastseg train --images img --masks mask" in shown


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_has_the_common_flags(command, capsys):
    name = command.__name__.rpartition(".")[2]
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    flags = {
        "segment": ["--weights", "--device", "--threads", "-o", "--out", "--config"],
        "crf": ["--device", "--threads", "-o", "--out", "--config"],
        "train": [
            "--data",
            "--images",
            "--masks",
            "--device",
            "--threads",
            "-o",
            "--out",
            "--config",
        ],
        "evaluate": ["--data", "--weights", "--device", "--threads", "-o", "--out", "--config"],
        "data": ["--data", "--images", "--masks", "-o", "--out", "--config"],
        "optimize": ["--device", "--threads", "--config"],
        "export": ["--weights", "--threads", "-o", "--out", "--config"],
        "bench": ["--device", "--threads", "--config"],
        "demo": ["--threads", "-o", "--out", "--config"],
        "info": [],
    }[name]
    assert all(flag in shown for flag in flags)
