"""The pictures to segment: found in files, folders, patterns and videos, and read ahead."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from fastseg.data.channel_image import Picture
from fastseg.data.image import ImageError
from fastseg.data.pairs import pictures
from fastseg.data.picture_format import PictureFormat, read_picture
from fastseg.data.video import check_video_package, count_frames, is_video, read_frames

READ_AHEAD = 4
"""Number of pictures that are read before they are needed."""


class Job(NamedTuple):
    """A picture and the name of its results.

    Attributes:
        image: the file.
        name: path in the folder of results, without a suffix.
        frame: number of a video's frame, from 0 on; None for a picture.
    """

    image: Path
    name: str
    frame: int | None = None

    @property
    def file_name(self) -> str:
        """The name of the picture, with its suffix; of a frame that of its mask."""
        if self.frame is not None:
            return f"{self.name}.png"
        return PurePosixPath(self.name).with_name(self.image.name).as_posix()


Read = tuple[Job, Picture | str]
"""A picture, or why it cannot be read."""


def find_jobs(inputs: Sequence[str], results: Collection[Path] = ()) -> list[Job]:
    """Returns the pictures of files, folders, patterns such as ``img/*.jpg``, and videos.

    The results of a folder's pictures have their paths in it; those of two files of one name keep
    their suffixes. Frames of a video that is named or matches a pattern are pictures in a folder of
    its name, 000001 the first.

    Args:
        inputs: files, folders and patterns.
        results: resolved paths of masks and overlays, which are no pictures in a folder, nor those
            of a pattern.

    Raises:
        FileNotFoundError: an input is not there, or a folder has no pictures.
        ImageError: frames of a video need a package that is not installed.
        ValueError: two pictures would have results of one name.
    """
    found: list[Job] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = [p for p in pictures(path) if p.resolve() not in results]
            if not inside:
                raise FileNotFoundError(f"{path}: has no pictures")
            found += [Job(p, p.relative_to(path).with_suffix("").as_posix()) for p in inside]
        elif path.exists() or not glob.has_magic(text):
            found += _jobs_of(path)
        else:
            matching = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())
            matching = [p for p in matching if p.resolve() not in results]
            if not matching:
                raise FileNotFoundError(f"{text}: no file has such a name")
            found += [job for p in matching for job in _jobs_of(p)]
    jobs = list({(job.image.absolute(), job.frame): job for job in found}.values())
    names = Counter(job.name for job in jobs)
    jobs = [
        job._replace(name=f"{job.name}{job.image.suffix}") if names[job.name] > 1 else job
        for job in jobs
    ]
    seen: dict[str, Path] = {}
    for job in jobs:
        if job.name in seen:
            raise ValueError(f"{job.image} and {seen[job.name]} would have results of one name")
        seen[job.name] = job.image
    return jobs


def check_results(files: Mapping[Job, Sequence[Path]]) -> None:
    """Checks that the files that are written for each picture replace no picture and no other one.

    Raises:
        ValueError: a file is a picture's, or that of two.
    """
    images = {job.image.resolve() for job in files}
    seen: dict[Path, Job] = {}
    for job, paths in files.items():
        for path in paths:
            if path.resolve() in images:
                raise ValueError(
                    f"{path} is a picture to segment: give another folder for the masks"
                )
            first = seen.setdefault(path, job)
            if first is not job:
                raise ValueError(
                    f"{path} would be a result of {first.image} and of {job.image}: rename one, or "
                    "give them folders of their own"
                )


def _jobs_of(path: Path) -> list[Job]:
    """Returns the job of a file; of a video those of its frames."""
    if not is_video(path):
        return [Job(path, path.stem)]
    check_video_package(path)
    try:
        count = count_frames(path)
    except ImageError:  # which is told when the frame is read, and the others go on
        count = 1
    return [Job(path, f"{path.stem}/{k + 1:06}", k) for k in range(count)]


def is_many(inputs: Sequence[str]) -> bool:
    """Whether inputs are several pictures, a folder, a pattern or a video, not one picture."""
    first = Path(inputs[0])
    return (
        len(inputs) > 1
        or first.is_dir()
        or is_video(first)
        or (glob.has_magic(inputs[0]) and not first.exists())
    )


def read_ahead(jobs: Sequence[Job], form: PictureFormat | None = None) -> Iterator[Read]:
    """Yields pictures in their order; threads read the next ones meanwhile.

    Args:
        jobs: the pictures.
        form: how they are read as they are stored, which frames of a video are not; None is as RGB
            of 8 bits.
    """
    video = _Video()
    with ThreadPoolExecutor(min(READ_AHEAD, len(os.sched_getaffinity(0)))) as pool:
        waiting: list[Future[Read]] = []
        try:
            for job in jobs:
                if job.frame is None:
                    waiting.append(pool.submit(_read, job, form))
                elif form is not None:
                    waiting.append(Future())
                    problem = f"{job.image}: a frame has 3 channels of uint8, expected {form}"
                    waiting[-1].set_result((job, problem))
                else:  # frames come one after the other, from a process that decodes ahead
                    waiting.append(Future())
                    waiting[-1].set_result((job, video.read(job)))
                if len(waiting) > READ_AHEAD:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        finally:
            video.close()


def _read(job: Job, form: PictureFormat | None) -> Read:
    try:
        return job, read_picture(job.image, form)
    except ImageError as error:
        return job, str(error)


class _Video:
    """The video whose frames are being read, in their order."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.frames: Iterator[Image.Image] = iter(())
        self.next = 0

    def read(self, job: Job) -> Image.Image | str:
        """Returns a frame, past those that nobody asks for, or why it cannot be read."""
        if job.image != self.path or job.frame < self.next:
            self.close()
            self.path, self.frames, self.next = job.image, read_frames(job.image), 0
        try:
            while True:
                frame = next(self.frames)
                self.next += 1
                if self.next > job.frame:
                    return frame
        except StopIteration:
            return f"{job.image}: ends before frame {job.frame + 1}"
        except ImageError as error:
            return str(error)

    def close(self) -> None:
        """Ends the process that decodes."""
        if self.path is not None:
            self.frames.close()
        self.path = None
