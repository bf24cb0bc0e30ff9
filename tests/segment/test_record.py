"""What is taken for done in a folder of results, after other settings and after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg.cli import main
from fastseg.segment.jobs import Job
from fastseg.segment.many import Outputs, _begin
from fastseg.segment.record import Record, results_in

OTHER = ("--flip", "--scales", "2")


def segment(weights, *arguments):
    return main(["segment", *arguments, "--weights", weights])


@pytest.fixture
def two(folder, monkeypatch):
    """Pictures in folders of their own, A and B."""
    for name in ("A", "B"):
        (folder / name).mkdir()
        Image.effect_noise((41, 30), 60).convert("RGB").save(folder / name / f"{name.lower()}.png")
    return folder


def test_pictures_that_a_run_of_other_settings_left_out_are_made_anew(two, weights, capsys):
    assert segment(weights, "A", "B", "-o", "res", *OTHER) == 0
    assert segment(weights, "A", "-o", "res") == 0
    capsys.readouterr()
    assert segment(weights, "B", "-o", "res") == 0
    assert "1 written" in capsys.readouterr().out
    assert segment(weights, "A", "B", "-o", "plain") == 0
    for name in ("a.png", "b.png"):
        assert (two / "res" / name).read_bytes() == (two / "plain" / name).read_bytes()
    capsys.readouterr()
    assert segment(weights, "A", "B", "-o", "res") == 0
    assert "2 there already" in capsys.readouterr().out


def test_overlays_of_other_settings_are_made_anew(two, weights):
    assert segment(weights, "A", "-o", "res", "--overlay", *OTHER) == 0
    assert segment(weights, "A", "-o", "res") == 0
    assert segment(weights, "A", "-o", "res", "--overlay") == 0
    assert segment(weights, "A", "-o", "plain", "--overlay") == 0
    drawn = [np.asarray(Image.open(f"{name}/a_overlay.png")) for name in ("res", "plain")]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("settings", [(), OTHER])
def test_a_run_that_is_killed_is_gone_on_with(two, weights, capsys, monkeypatch, settings):
    """Whatever it had done: nothing that other settings made is taken for done."""
    assert segment(weights, "A", "B", "-o", "plain", *settings) == 0

    class Killed(BaseException):
        pass

    for steps in range(8):
        shutil.rmtree("res", ignore_errors=True)
        assert segment(weights, "A", "B", "-o", "res", "--crf") == 0
        left = [steps]

        def step(real, left=left):
            def call(*arguments, **named):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*arguments, **named)

            return call

        with monkeypatch.context() as patched:
            for module, name in ((os, "unlink"), (os, "replace")):
                patched.setattr(module, name, step(getattr(module, name)))
            try:
                segment(weights, "A", "B", "-o", "res", *settings)
            except Killed:
                pass
            else:
                assert steps == 6, "two records, two masks removed and two made"
                break
        assert segment(weights, "A", "B", "-o", "res", *settings) == 0
        for name in ("a.png", "b.png"):
            assert (two / "res" / name).read_bytes() == (two / "plain" / name).read_bytes()
    else:
        pytest.fail("the run did not end")


def test_files_of_the_users_beside_results_are_kept(two, weights, capsys):
    assert segment(weights, "A", "-o", "res") == 0
    (two / "res/b.png").write_text("my own")
    for settings in ((), OTHER):
        assert segment(weights, "A", "B", "-o", "res", *settings) == 2
        assert "res/b.png is there and was not made by this command" in capsys.readouterr().err
    assert (two / "res/b.png").read_text() == "my own"
    assert segment(weights, "A", "B", "-o", "res", "--overwrite") == 0
    assert Image.open("res/b.png").size == (41, 30)


@pytest.mark.parametrize("text", ['{"weights": "small.pt", "flip": false}', "[]", "{"])
def test_records_that_do_not_tell_files(two, weights, capsys, text):
    """Earlier versions wrote the settings alone: what is there was made by who knows which."""
    assert segment(weights, "A", "-o", "res") == 0
    (two / "res/segment.json").write_text(text)
    capsys.readouterr()
    assert segment(weights, "A", "-o", "res") == 0
    assert "1 written" in capsys.readouterr().out


def test_results_in_a_folder_of_pictures_are_no_pictures(two, weights, capsys):
    for pattern, count in ((".", 5), ("[AB]/**/*.png", 2)):
        for done in ("written", "there already"):
            assert segment(weights, pattern, "-o", "A/res", "--overlay") == 0
            assert f"{count} pictures, segnet_basic on cpu: {count} {done}" in (
                capsys.readouterr().out
            )
        shutil.rmtree("A/res")
    (two / "A/res").mkdir()
    shutil.copy("A/a.png", "A/res/own.png")
    assert segment(weights, "A", "-o", "A/res") == 0
    assert "2 pictures" in capsys.readouterr().out, "the user's own is one"


def test_runs_that_begin_at_once_are_all_recorded(tmp_path, monkeypatch):
    read = Record.read

    def slowly(*arguments):
        found = read(*arguments)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(Record, "read", slowly)
    outputs = Outputs(tmp_path)
    runs = [
        threading.Thread(target=_begin, args=([Job(Path(f"{name}.jpg"), name)], outputs, {}, False))
        for name in "ab"
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert read(tmp_path, ()).files == {"a.png", "b.png"}


def test_names_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    Record({"flip": True}, frozenset([name])).write(tmp_path)
    assert Record.read(tmp_path, ()) == Record({"flip": True}, frozenset([name]))
    assert results_in(tmp_path) == {(tmp_path / name).resolve()}
    assert json.loads((tmp_path / "segment.json").read_text())["others"] == []
