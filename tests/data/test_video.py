"""Frames of videos: with a stand-in for imageio-ffmpeg, and with itself where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fastseg.cli import main
from fastseg.data import PictureFormat
from fastseg.data.image import ImageError
from fastseg.data.video import count_frames, is_video, read_frames
from fastseg.segment.jobs import find_jobs, is_many, read_ahead

SIZE = (48, 32)


def shade(k: int) -> int:
    return 20 + 30 * k


class StandIn(ModuleType):
    """Videos whose files hold the number of their frames; how many frames are told may differ."""

    def __init__(self):
        super().__init__("imageio_ffmpeg")
        self.running = 0

    def count_frames_and_secs(self, path):
        with open(path) as file:
            text = file.read()
        if not text.split()[0].isdigit():
            raise RuntimeError(f"FFMPEG call failed with 1:\n{path}: Invalid data found")
        return int(text.split()[0]), 1.0

    def read_frames(self, path):
        self.running += 1
        try:
            with open(path) as file:
                words = file.read().split()
            if not words[0].isdigit():
                raise OSError("Could not load meta information\n=== stderr ===\nInvalid data found")
            yield {"size": SIZE}
            for k in range(int(words[-1])):
                yield bytes([shade(k)]) * (3 * SIZE[0] * SIZE[1])
        finally:
            self.running -= 1


@pytest.fixture
def package(monkeypatch, tmp_path):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", stand_in)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drive.mp4").write_text("6")
    (tmp_path / "short.avi").write_text("3 2")
    (tmp_path / "broken.MOV").write_text("nonsense")
    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    yield stand_in
    assert stand_in.running == 0, "a process still decodes"


def test_videos_by_name():
    assert is_video("A.MP4")
    assert not is_video("mp4.png")


def test_frames_are_pictures_of_many(package):
    jobs = find_jobs(["drive.mp4", "a.png"])
    assert [(job.name, job.frame) for job in jobs[:2]] == [("drive/000001", 0), ("drive/000002", 1)]
    assert jobs[1].file_name == "drive/000002.png"
    assert len(jobs) == 7
    assert is_many(["drive.mp4"])
    assert len(find_jobs(["*.mp4"])) == 6


def test_frames_are_read_in_their_order(package):
    found = list(read_ahead(find_jobs(["drive.mp4", "a.png"])))
    assert [picture.getpixel((0, 0))[0] for _, picture in found] == [*map(shade, range(6)), 0]
    assert all(picture.size == SIZE for _, picture in found)


def test_frames_that_are_there_are_passed_over(package):
    jobs = find_jobs(["drive.mp4"])
    found = list(read_ahead([jobs[1], jobs[4]]))
    assert [picture.getpixel((0, 0))[0] for _, picture in found] == [shade(1), shade(4)]


def test_frames_are_in_rgb_and_no_pictures_of_other_channels(package):
    found = list(read_ahead(find_jobs(["drive.mp4"])[:2], PictureFormat(5, dtype="uint16")))
    problem = "drive.mp4: a frame has 3 channels of uint8, expected 5 channels of uint16"
    assert [picture for _, picture in found] == [problem, problem]


def test_reading_that_ends_early_ends_the_process(package):
    reading = read_ahead(find_jobs(["drive.mp4"]))
    next(reading)
    reading.close()


def test_broken_videos_are_told_and_the_others_go_on(package):
    found = list(read_ahead(find_jobs(["broken.MOV", "short.avi", "a.png"])))
    problems = [picture for _, picture in found if isinstance(picture, str)]
    assert problems == [
        "broken.MOV: not a video, or damaged (Invalid data found)",
        "short.avi: ends before frame 3",
    ]


def test_a_video_that_is_not_there(package):
    with pytest.raises(ImageError, match=r"none\.mp4: no such file"):
        count_frames(Path("none.mp4"))


def test_without_the_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (tmp_path / "drive.mp4").write_text("6")
    assert main(["segment", str(tmp_path / "drive.mp4"), "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "drive.mp4: frames of a video need imageio-ffmpeg" in err
    assert "pip install imageio-ffmpeg" in err


def test_the_package_itself(tmp_path):
    package = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "drive.mp4"
    writer = package.write_frames(str(path), SIZE, fps=5, codec="mpeg4", macro_block_size=1)
    writer.send(None)
    for k in range(6):
        writer.send(np.full((SIZE[1], SIZE[0], 3), shade(k), np.uint8).tobytes())
    writer.close()
    assert count_frames(path) == 6
    shades = [np.asarray(frame).mean() for frame in read_frames(path)]
    np.testing.assert_allclose(shades, [shade(k) for k in range(6)], atol=6)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="not a video, or damaged"):
        list(read_frames(path))
