"""A look at all pictures and masks before anything is trained: sizes, values, broken files."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastseg.data.channel_stats import ChannelStats, measured
from fastseg.data.classes import IGNORE, Classes, Value, listed_values
from fastseg.data.image import ImageError, ImageWarning, read_with_guess
from fastseg.data.label_sets import Colour, voc_palette
from fastseg.data.masks import Mask, meanings, read_mask
from fastseg.data.pairs import Pair
from fastseg.data.picture_format import PictureFormat
from fastseg.data.silence import pillow_silenced

MOST_UNNAMED = 64
"""Number of ids above which masks without a file of classes are hardly masks."""


@dataclass(frozen=True)
class Surveyed:
    """What was found in a picture and its mask.

    Attributes:
        pair: the two files.
        size: width and height of the picture; (0, 0) if it cannot be read.
        mask: the mask's values, without its pixels; None if it cannot be read.
        problem: why the pair cannot be used, or None.
        stats: mean and variance of the picture's channels; None of one in RGB.
    """

    pair: Pair
    size: tuple[int, int]
    mask: Mask | None
    problem: str | None
    stats: ChannelStats | None = None

    def class_pixels(self, classes: Classes) -> dict[int, int]:
        """Returns the number of pixels of each class, and of IGNORE, that occurs.

        Raises:
            ImageError: a value that is no class.
        """
        pixels: Counter[int] = Counter()
        found = meanings(self.pair.mask, self.mask, classes)
        for k, count in zip(found, self.mask.values.values(), strict=True):
            pixels[k] += count
        return dict(pixels)


def survey(
    pairs: Sequence[Pair], form: PictureFormat | None = None, *, progress: bool = False
) -> list[Surveyed]:
    """Reads all pictures and masks, on all processors.

    An ImageWarning tells of each picture whose reading rests on a guess, in the pictures' order.

    Args:
        pairs: the files.
        form: how pictures are read as they are stored; None is as RGB of 8 bits.
        progress: whether to show a bar on stderr.
    """
    workers = min(32, len(os.sched_getaffinity(0)) + 1)
    with pillow_silenced(), ThreadPoolExecutor(workers) as pool:
        looks = pool.map(partial(_look_at, form=form), pairs)
        bar = tqdm(looks, "look at pictures", len(pairs), leave=False, disable=not progress)
        found = list(bar)
    for _, guess in found:
        if guess:
            warnings.warn(guess, ImageWarning, stacklevel=2)
    return [surveyed for surveyed, _ in found]


def _look_at(pair: Pair, form: PictureFormat | None) -> tuple[Surveyed, str]:
    """Returns what is found, and the text of a guess, which the calling thread warns of."""
    size, mask, stats, guess, problems = (0, 0), None, None, "", []
    try:
        if form is None:
            picture, guess = read_with_guess(pair.image)
            size = picture.size
        else:
            channels = form.read(pair.image)
            size = channels.size
            stats = measured(channels)
    except ImageError as error:
        problems.append(str(error))
    try:
        whole = read_mask(pair.mask)
        mask = whole._replace(places=whole.places[:0].copy())  # a view would keep all of them
        if (0, 0) != size != whole.size:
            problems.append(
                f"{pair.mask}: is {whole.size[0]}x{whole.size[1]}, its picture {size[0]}x{size[1]}"
            )
    except ImageError as error:
        problems.append(str(error))
    return Surveyed(pair, size, mask, "; ".join(problems) or None, stats), guess


def of_one_type(
    surveyed: Sequence[Surveyed], form: PictureFormat
) -> tuple[list[Surveyed], PictureFormat]:
    """Returns pictures of which those with another type of values than most are problems.

    Values of one size mean different things in files of 8 and of 16 bits, so that a network takes
    pictures of one type alone.

    Returns:
        The pictures, and the format with the type of most of them.
    """
    types = Counter(found.stats.dtype for found in surveyed if found.stats is not None)
    if form.dtype or not types:
        return list(surveyed), form
    form = replace(form, dtype=types.most_common(1)[0][0])
    checked = []
    for found in surveyed:
        if found.stats is not None and found.stats.dtype != form.dtype:
            own, image = found.stats.dtype, found.pair.image
            problem = f"{image}: has values of {own}, most have {form.dtype}"
            found = replace(found, problem="; ".join(filter(None, (problem, found.problem))))
        checked.append(found)
    return checked, form


def values_of(surveyed: Iterable[Surveyed]) -> Counter[Value]:
    """Returns the number of pixels of each stored value."""
    total: Counter[Value] = Counter()
    for found in surveyed:
        if found.mask is not None:
            total.update(found.mask.values)
    return total


def told_classes(surveyed: Sequence[Surveyed], folder: str) -> Classes:
    """Returns the classes that the masks themselves tell: numbered ones, or a mask's two.

    Raises:
        ValueError: masks in colours, or more ids than masks have.
    """
    values = values_of(surveyed)
    colours = [v for v in values if isinstance(v, tuple)]
    if colours:
        raise ValueError(
            f"the masks of {folder} are in colours, {listed_values(colours)}: a file of classes "
            "with their colours is needed (--classes)"
        )
    ids = sorted(values)
    if set(ids) <= {0, IGNORE}:
        return Classes(("background", "foreground"), tuple(voc_palette(2)), {0: 0, IGNORE: 1})
    if len(ids) > MOST_UNNAMED:
        raise ValueError(
            f"the masks of {folder} hold {len(ids)} different ids, as pictures of shades would; "
            "if these are classes, a file of their names says so (--classes)"
        )
    count = max(k for k in ids if k != IGNORE) + 1
    names = tuple(f"class {k}" for k in range(count))
    palette = _palette(surveyed, count) or voc_palette(count)
    return Classes(names, tuple(palette), {k: k for k in range(count)})


def _palette(surveyed: Sequence[Surveyed], count: int) -> list[Colour] | None:
    """Returns the colours of the masks' palettes, where they are not shades of grey."""
    colours: dict[Value, Colour] = {}
    for found in surveyed:
        if found.mask is not None and found.mask.colours is not None:
            colours.update(zip(found.mask.values, found.mask.colours, strict=True))
    palette = [colours.get(k, colour) for k, colour in enumerate(voc_palette(count))]
    grey = all(palette[k] == (k, k, k) for k in colours if k < count)
    return None if grey else palette


def fitted(classes: Classes, surveyed: Sequence[Surveyed]) -> Classes:
    """Returns two classes with the ids that the masks have, 0 and 1 or 0 and 255; others as is."""
    given = {v for v in classes.values if isinstance(v, int)}
    found = {v for v in values_of(surveyed) if isinstance(v, int)}
    if len(classes) != 2 or not given <= {0, 1, IGNORE} or not found <= {0, 1, IGNORE}:
        return classes
    if len({k for k in classes.values.values() if k != IGNORE}) != 2:
        return classes
    first, second = (classes.class_of(v) for v in (0, 1 if 1 in given else IGNORE))
    ids = {0: first, 1: second} if 1 in found or IGNORE not in found else {0: first, IGNORE: second}
    return classes.with_values({**classes.colours, **ids})


def class_counts(surveyed: Sequence[Surveyed], classes: Classes) -> tuple[Tensor, Tensor]:
    """Counts the pixels of each class, as ``median_frequency_weights`` takes them.

    Returns:
        pixels: int64 (C,), the number of pixels of each class.
        present: int64 (C,), the number of pixels of all pictures with the class.
    """
    pixels, present = torch.zeros(2, len(classes), dtype=torch.int64)
    for found in surveyed:
        counts = found.class_pixels(classes)
        whole = sum(counts.values())
        for k, count in counts.items():
            if k != IGNORE:
                pixels[k] += count
                present[k] += whole
    return pixels, present


def problems_of(surveyed: Sequence[Surveyed], classes: Classes | None) -> dict[Path, str]:
    """Returns why pictures cannot be used, by their files."""
    problems = {}
    for found in surveyed:
        problem = found.problem
        if problem is None and classes is not None:
            try:
                found.class_pixels(classes)
            except ImageError as error:
                problem = str(error)
        if problem is not None:
            problems[found.pair.image] = problem
    return problems
