"""Frames of videos, read by imageio-ffmpeg where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from PIL import Image

from fastseg.data.image import ImageError

SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
"""Endings of the names of videos."""


def is_video(path: str | Path) -> bool:
    """Whether a file is a video by its name."""
    return str(path).lower().endswith(SUFFIXES)


def _package(path: Path) -> ModuleType:
    """Returns imageio_ffmpeg, imported here because it is optional."""
    try:
        return importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise ImageError(
            f"{path}: frames of a video need imageio-ffmpeg, which cannot be imported ({error}): "
            "pip install imageio-ffmpeg"
        ) from None


def check_video_package(path: Path) -> None:
    """Raises an ImageError that names a video where imageio-ffmpeg is not installed."""
    _package(path)


def count_frames(path: Path) -> int:
    """Returns the number of a video's frames, which are decoded for it.

    Raises:
        ImageError: the file is missing or no video, or imageio-ffmpeg is not installed.
    """
    package = _package(path)
    _check_file(path)
    try:
        count, _ = package.count_frames_and_secs(str(path))
    except Exception as error:  # ffmpeg's messages come in several kinds of errors
        raise _broken(path, error) from None
    if not count:
        raise ImageError(f"{path}: a video without frames")
    return count


def read_frames(path: Path) -> Iterator[Image.Image]:
    """Yields a video's frames in RGB, in their order.

    Raises:
        ImageError: the file is missing, no video or damaged, or imageio-ffmpeg is not installed.
    """
    package = _package(path)
    _check_file(path)
    frames = package.read_frames(str(path))
    try:
        size = next(frames)["size"]
        for pixels in frames:
            yield Image.frombytes("RGB", size, pixels)
    except (StopIteration, OSError, RuntimeError, KeyError) as error:
        raise _broken(path, error) from None
    finally:
        frames.close()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ImageError(f"{path}: no such file")


def _broken(path: Path, error: Exception) -> ImageError:
    """Returns the error of a video that ffmpeg cannot read, with the last thing that it said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return ImageError(f"{path}: not a video, or damaged ({reason})")
