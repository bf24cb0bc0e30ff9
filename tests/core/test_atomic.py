"""Files that are written in one step: what is there before, and what stays."""

from __future__ import annotations

import os
import threading

import pytest

from fastseg._core.atomic import atomic_write


def write(path, content=b"new"):
    with atomic_write(path) as file:
        file.write(content)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "big").mkdir()
    for name in ("old", "none"):  # a link may lead to a file that is not there yet
        (tmp_path / f"to_{name}").symlink_to(f"big/{name}")
    (tmp_path / "big/old").write_bytes(b"old")
    for name in ("old", "none"):
        write(tmp_path / f"to_{name}")
        assert (tmp_path / f"to_{name}").is_symlink()
        assert (tmp_path / "big" / name).read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path / "big")) == ["none", "old"]


def test_a_pipe_stays_and_is_written_to(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    write(path)
    assert path.is_fifo()
    reader.join(10)
    assert got == [b"new"]


def test_a_device_is_written_to():
    """A terminal stands for all devices: no mistake can replace it."""
    ours, theirs = os.openpty()
    try:
        write(os.ttyname(theirs))
        assert os.read(ours, 10) == b"new"
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    write(path)
    assert (path.stat().st_mode & 0o7777, path.read_bytes()) == (mode, b"new")


def test_the_longest_names(tmp_path):
    write(tmp_path / ("a" * 255))
    assert os.listdir(tmp_path) == ["a" * 255]
    longer = tmp_path / ("a" * 256)
    with pytest.raises(OSError, match="name too long") as told:
        write(longer)
    assert told.value.filename == str(longer)


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "tempfile.mkstemp"])
def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments, **_):
        place = [str(tmp_path / ".fastseg.abc")] * (step != "os.fsync")
        raise OSError(28, "No space left on device", *place)

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left") as told:
        write(path)
    assert (told.value.filename, told.value.filename2) == (str(path), None)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"
