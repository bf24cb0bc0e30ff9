"""How the tiles of a launch are cut into programs, so that the last one ends soonest by the model.

Whole tiles, the longest first, leave multiprocessors idle where tiles are few or end far apart. A
tile that is cut is worked on by several programs, each of which takes some of its taps and chunks
of channels and stores its sums, which a second kernel adds up: this costs bytes and a launch. Two
ways to cut are tried beside none:

- each tile of so many taps or more into even parts of no more than so many steps;
- stream-K (Osama et al. 2023, arXiv 2301.03598): the steps of all tiles, or of those behind the
  first rounds of whole tiles, or of the longest, are one line in the plan's order, cut into runs of
  equal length. A run that crosses from one tile to the next is two programs. Cuts fall between
  chunks, or between taps where there are more taps than chunks: a part is all taps of some chunks,
  which the kernel's two loops can walk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fastseg.kernels.conv.makespan import makespan

DIVISORS = (*range(2, 17), 18, 20, 24, 28, 32, 40, 48)
"""Numbers of parts that the longest tile's taps and channels may be split into."""

RUNS = (1, 1.5, 2, 2.5, 3, 4, 6)
"""Numbers of stream-K's runs, were its line all tiles, for each program that runs at a time."""

MOST_TILES = 8
"""Number of programs of whole tiles for each multiprocessor, beyond which nothing is cut."""

Part = tuple[int, int, int, int]
"""Of a tile's list of taps the first and the end, and the first chunk of channels and the end."""

Cuts = dict[int, tuple[Part, ...]]
"""The parts of each tile that is cut, by its number."""


class Times(NamedTuple):
    """Modelled microseconds, see :mod:`fastseg.kernels.conv.cost`.

    Attributes:
        step: a step of a program's main loop.
        start: from a program's begin to its first step.
        store: the outputs of a tile, BM x BN of them, to be stored.
        slot: the sums of a tile to be stored in a slot of the workspace.
        read: a slot to be read while all multiprocessors read others.
        launch: what a kernel's launch adds to its work.
    """

    step: float
    start: float
    store: float
    slot: float
    read: float
    launch: float


class Cut(NamedTuple):
    """What cuts depend on.

    Attributes:
        tile: BM, the number of pixels of a tile.
        columns: number of programs that share a tile's output channels.
        chunks: number of the main loop's steps for one tap.
        processors: number of the GPU's multiprocessors.
        times: how long a program's steps take, and what is around them.
    """

    tile: int
    columns: int
    chunks: int
    processors: int
    times: Times


def parts_of(taps: int, chunks: int, most: int) -> tuple[int, int]:
    """The numbers of parts of taps and of chunks for which no part has more than `most` steps."""
    if taps == 0:
        return 1, 1
    options = []
    for by_tap in range(1, taps + 1):
        rows = -(-taps // by_tap)
        by_chunk = -(-chunks // max(1, most // rows))
        if rows * -(-chunks // by_chunk) <= most:
            options.append((by_tap * by_chunk, by_tap, by_chunk))
    return min(options)[1:] if options else (taps, chunks)


def bounds(total: int, parts: int) -> list[tuple[int, int]]:
    """The `parts` ranges, as even as can be, that `total` is cut into."""
    return [(i * total // parts, (i + 1) * total // parts) for i in range(parts)]


class Candidate(NamedTuple):
    """A way to cut, of which the parts are made only if it is the best.

    Attributes:
        is_cut: whether a tile is cut, (tiles,).
        steps: number of steps of each part of the tiles that are.
        build: what makes the `Cuts`.
    """

    is_cut: np.ndarray
    steps: np.ndarray
    build: Callable[[], Cuts]


def even_cuts(taps: np.ndarray, chunks: int, least: int, most: int) -> Candidate:
    """Parts of no more than `most` steps, as even as can be, of tiles of `least` taps or more."""
    parts, steps, is_cut = {}, [], np.zeros(len(taps), bool)
    for t in np.unique(taps[taps >= least]).tolist():
        by_tap, by_chunk = parts_of(t, chunks, most)
        if by_tap * by_chunk > 1:
            pairs = itertools.product(bounds(t, by_tap), bounds(chunks, by_chunk))
            parts[t] = tuple((*a, *b) for a, b in pairs)
            of_tile = [(end - first) * (high - low) for first, end, low, high in parts[t]]
            is_cut |= taps == t
            steps += [of_tile] * np.count_nonzero(taps == t)
    steps = np.array(list(itertools.chain(*steps)), np.int64)

    def build() -> Cuts:
        return {i: parts[int(taps[i])] for i in np.flatnonzero(is_cut).tolist()}

    return Candidate(is_cut, steps, build)


def stream_cuts(
    taps: np.ndarray, chunks: int, line: range, length: float, least: float
) -> Candidate:
    """Cuts of a line of steps into runs of equal length.

    Args:
        taps: number of taps of each tile, in the plan's order.
        chunks: number of steps for one tap.
        line: the tiles whose steps are the line.
        length: number of steps of a run.
        least: number of steps that a part must have to be worth its store.
    """
    walked = taps[line.start : line.stop].astype(np.int64)
    ends = np.cumsum(walked) * chunks
    borders = np.arange(1, math.ceil(ends[-1] / length)) * length
    tile = np.minimum(np.searchsorted(ends, borders, "right"), len(walked) - 1)
    unit = np.minimum(walked, chunks)  # the steps between two places that may be cut
    mark = np.rint((borders - (ends - walked * chunks)[tile]) / np.maximum(unit, 1)[tile])
    inside = mark.astype(np.int64) * unit[tile]
    kept = (inside > least) & (inside < walked[tile] * chunks - least)
    tile, inside = np.unique(np.stack([tile[kept], inside[kept]]), axis=1)
    is_cut = np.zeros(len(taps), bool)
    is_cut[tile + line.start] = True
    # Each cut tile's places, its ends among them, one tile after the other.
    ended = np.unique(tile)
    tiles = np.concatenate([tile, ended, ended])
    places = np.concatenate([inside, np.zeros_like(ended), walked[ended] * chunks])
    order = np.lexsort([places, tiles])
    tiles, places = tiles[order], places[order]
    steps = np.diff(places)[np.diff(tiles) == 0]

    def build() -> Cuts:
        cuts = {}
        for i in ended.tolist():
            t = int(walked[i])
            ranges = itertools.pairwise((places[tiles == i] // unit[i]).tolist())
            cuts[i + line.start] = tuple(
                (0, t, *r) if chunks >= t else (*r, 0, chunks) for r in ranges
            )
        return cuts

    return Candidate(is_cut, steps, build)


def time_of(taps: np.ndarray, cut: Cut, way: Candidate | None, most: float = math.inf) -> float:
    """The time of a launch whose tiles are cut in a way, or not at all if it is None.

    It is infinity if it is seen to be over `most`.
    """
    times, time = cut.times, cut.times.launch
    whole = taps if way is None else taps[~way.is_cut]
    lengths = whole * (cut.chunks * times.step) + times.store
    if way is not None and way.is_cut.any():
        lengths = np.concatenate([lengths, way.steps * times.step + times.slot])
        time += times.launch + len(way.steps) * cut.columns * times.read
    lengths = lengths + times.start
    if time + max(lengths.max(), lengths.sum() * cut.columns / cut.processors) >= most:
        return math.inf
    lengths = np.repeat(np.sort(lengths)[::-1], cut.columns)
    return time + makespan(lengths.tolist(), cut.processors)


def candidates(taps: np.ndarray, cut: Cut) -> Iterator[Candidate]:
    """Ways to cut that may be the best."""
    longest, at_once = int(taps.max()) * cut.chunks, max(1, cut.processors // cut.columns)
    kinds = np.unique(taps[taps > 0]).tolist()
    for most in sorted({-(-longest // divisor) for divisor in DIVISORS}):
        for least in kinds:
            yield even_cuts(taps, cut.chunks, least, most)
    total = int(taps.sum()) * cut.chunks
    worth = cut.times.slot / cut.times.step
    ends = np.searchsorted(-taps, [-t for t in kinds], "right").tolist()
    lines = {range(end) for end in ends}  # the tiles of so many taps or more, or the others
    lines |= {range(first, ends[0]) for first in ends[1:]}
    lines |= {range(first, ends[0]) for first in range(at_once, ends[0], at_once)}
    for line, runs in itertools.product(sorted(lines, key=lambda r: (r.start, r.stop)), RUNS):
        yield stream_cuts(taps, cut.chunks, line, total / (runs * at_once), worth)


def least_time(taps: np.ndarray, cut: Cut) -> float:
    """The time of a launch whose programs did nothing but their steps, on all multiprocessors."""
    steps = int(taps.sum()) * cut.chunks * cut.columns
    return cut.times.launch + steps * cut.times.step / cut.processors


def choose_cuts(taps: np.ndarray, cut: Cut) -> tuple[Cuts, float]:
    """The cuts for tiles of so many taps, the longest first, and the time they should take."""
    best, least = None, time_of(taps, cut, None)
    if taps.any() and len(taps) * cut.columns <= MOST_TILES * cut.processors:
        for way in candidates(taps, cut):
            time = time_of(taps, cut, way, least)
            if time < least:
                best, least = way, time
    return ({} if best is None else best.build()), least
