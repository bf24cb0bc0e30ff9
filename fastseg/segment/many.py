"""Segmentation of many pictures into a folder, several at once, and gone on with."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastseg._core.atomic import atomic_write
from fastseg.data.channel_image import Picture, preview
from fastseg.data.coco import coco_dataset
from fastseg.data.image import read_labels
from fastseg.data.overlay import overlay
from fastseg.segment.jobs import Job, Read, check_results, read_ahead
from fastseg.segment.predictor import Predictor
from fastseg.segment.record import Record, locked
from fastseg.segment.segmenter import Segmenter, highest_class

OVERLAY_OPACITY, OVERLAY_SHARE = 0.4, 0.005
"""Opacity of the classes over a picture, and the least share of a class in the legend."""


class Result(NamedTuple):
    """What is written for a picture.

    Attributes:
        job: the file and the name.
        picture: the picture, as the network takes it.
        labels: its classes, uint8 (H, W).
        probabilities: float16 (C, H, W), or None.
    """

    job: Job
    picture: Picture
    labels: np.ndarray
    probabilities: np.ndarray | None


@dataclass(frozen=True)
class Outputs:
    """The files that are written for each picture, beside its mask.

    Args:
        folder: the folder.
        probabilities: whether to write ``NAME.npz``, float16 (C, H, W).
        overlays: whether to write ``NAME_overlay.png``.
    """

    folder: Path
    probabilities: bool = False
    overlays: bool = False

    def files(self, name: str) -> list[Path]:
        """Returns the files of a picture."""
        found = [self.folder / f"{name}.png"]
        found += [self.folder / f"{name}.npz"] * self.probabilities
        return found + [self.folder / f"{name}_overlay.png"] * self.overlays


def segment_many(
    predictor: Predictor,
    jobs: Sequence[Job],
    outputs: Outputs,
    *,
    batch_size: int = 1,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_done: Callable[[Job, str | None], None] = lambda job, problem: None,
) -> int:
    """Segments pictures and writes their masks; a broken one is reported and left out.

    Args:
        predictor: the network and how it is applied.
        jobs: the pictures.
        outputs: where and what is written. The folder is made if it is missing.
        batch_size: pictures of one size that follow each other and are computed at once.
        settings: what the results depend on; those in the folder that have others are replaced.
            The folder's record says which have.
        overwrite: whether results that are there are made anew.
        on_done: called after each picture, with the reason if it is broken; for one that is there
            already with "".

    Returns:
        The number of broken pictures.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: a result would replace a picture, another result, or what nobody knows.
    """
    missing = _begin(jobs, outputs, settings, overwrite)
    left = set(missing)  # a video has many frames
    for job in jobs:
        if job not in left:
            on_done(job, "")
    broken = 0
    read = read_ahead(missing, predictor.segmenter.form)
    for batch in _batches(read, predictor, batch_size):
        good = [(job, picture) for job, picture in batch if not isinstance(picture, str)]
        for job, problem in ((j, p) for j, p in batch if isinstance(p, str)):
            broken += 1
            on_done(job, problem)
        if good:
            for result in _results(predictor, good, outputs.probabilities):
                problem = _write(predictor.segmenter, outputs, result)
                broken += problem is not None
                on_done(result.job, problem)
    return broken


def _begin(
    jobs: Sequence[Job], outputs: Outputs, settings: dict[str, Any] | None, overwrite: bool
) -> list[Job]:
    """Prepares the folder; returns the pictures whose results are not there."""
    files = {job: outputs.files(job.name) for job in jobs}
    check_results(files)
    outputs.folder.mkdir(parents=True, exist_ok=True)
    names = {job: {p.relative_to(outputs.folder).as_posix() for p in files[job]} for job in jobs}
    with locked(outputs.folder):
        made = _record(outputs.folder, names, settings, overwrite)
    return [job for job in jobs if not names[job].isdisjoint(made)]


def _record(
    folder: Path, names: dict[Job, set[str]], settings: dict[str, Any] | None, overwrite: bool
) -> set[str]:
    """Removes files of other settings; returns those that are going to be made.

    The record is right after every step: what is said to be made by these settings either was, or
    is not there. So a run that is killed is gone on with.
    """
    every = set().union(*names.values())
    there = {name for name in every if os.path.exists(folder / name)}
    record = Record.read(folder, every)
    foreign = sorted(there - record.known)
    if foreign and not overwrite:
        raise ValueError(
            f"{folder / foreign[0]} is there and was not made by this command; --overwrite "
            "replaces it"
        )
    record = record.of(json.loads(json.dumps(settings)))
    done = set() if overwrite else there & record.files
    made = set().union(*(own for own in names.values() if not own <= done))
    stale = (made & there) - done
    if stale:
        record = record.without(made)
        record.write(folder)
        for name in stale:  # what was made by other settings must not be taken for done
            (folder / name).unlink()
    if made:
        record.with_made(made).write(folder)
    return made


def _batches(read: Iterator[Read], predictor: Predictor, batch_size: int) -> Iterator[list[Read]]:
    """Yields pictures that follow each other and have inputs of one size."""
    batch: list[Read] = []
    size = None
    for job, picture in read:
        if not isinstance(picture, str):
            own = predictor.segmenter.input_size(picture) if batch_size > 1 else None
            images = sum(not isinstance(p, str) for _, p in batch)
            if images >= batch_size or (images and own != size):
                yield batch
                batch = []
            size = own
        batch.append((job, picture))
    if batch:
        yield batch


@torch.inference_mode()
def _results(
    predictor: Predictor, good: Sequence[tuple[Job, Picture]], with_probabilities: bool
) -> Iterator[Result]:
    """Yields what is written for pictures that are computed at once."""
    jobs, images = zip(*good, strict=True)
    if not with_probabilities:
        for job, picture, labels in zip(jobs, images, predictor.labels(images), strict=True):
            yield Result(job, picture, labels, None)
        return
    for job, picture, scores in zip(jobs, images, predictor.scores(images), strict=True):
        size = (picture.height, picture.width)
        q = F.interpolate(scores.float(), size, mode="bilinear").softmax(1)[0]
        labels = highest_class(scores, size)
        yield Result(job, picture, labels, q.cpu().numpy().astype(np.float16))


def _write(segmenter: Segmenter, outputs: Outputs, result: Result) -> str | None:
    """Writes what belongs to a picture; returns why a name cannot be that of a file, or None."""
    try:
        _write_files(segmenter, outputs, result)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # others concern all pictures
            raise
        return f"{result.job.image}: {error.filename} cannot be written ({error.strerror})"
    return None


def _write_files(segmenter: Segmenter, outputs: Outputs, result: Result) -> None:
    mask, *others = outputs.files(result.job.name)
    mask.parent.mkdir(parents=True, exist_ok=True)
    if result.probabilities is not None:
        with atomic_write(others[0]) as file:
            np.savez_compressed(file, probabilities=result.probabilities)
    if outputs.overlays:
        drawn = overlay(
            preview(result.picture),
            {"": result.labels},
            segmenter.classes,
            segmenter.palette,
            OVERLAY_OPACITY,
            outlines=True,
            least_share=OVERLAY_SHARE,
        )
        with atomic_write(others[-1]) as file:
            drawn.save(file, format="PNG")
    image = Image.fromarray(result.labels)
    image.putpalette([channel for colour in segmenter.palette for channel in colour])
    with atomic_write(mask) as file:  # the last one: a picture with a mask is done
        image.save(file, format="PNG")


def write_coco(path: Path, jobs: Sequence[Job], folder: Path, classes: Sequence[str]) -> int:
    """Writes the masks in a folder as one data set of COCO.

    Args:
        path: the JSON file.
        jobs: the pictures; one without a mask is left out.
        folder: where :func:`segment_many` wrote the masks.
        classes: the classes' names by id.

    Returns:
        The number of pictures in it.

    Raises:
        OSError: the file cannot be written.
    """
    masks = ((job.file_name, folder / f"{job.name}.png") for job in jobs)
    found = ((name, read_labels(mask).ids) for name, mask in masks if os.path.exists(mask))
    dataset = coco_dataset(found, classes)
    with atomic_write(path) as file:
        file.write(json.dumps(dataset).encode())
    return len(dataset["images"])
