"""The plans of atrous convolutions on GPUs: every live tap of every pixel once, dead taps never."""

from __future__ import annotations

import itertools
import math
import threading
import tracemalloc
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from fastseg.kernels.conv import cuts, weight_grad_plan
from fastseg.kernels.conv import plan as plans
from fastseg.kernels.conv.geometry import Branch, Joined, Sizes
from fastseg.kernels.conv.plan import tiles_of
from fastseg.kernels.conv.plan_cache import PlanCache, moved
from fastseg.kernels.conv.tiles import make_tiles

ONE = (1, 1)


def atrous(rate, kernel=3):
    return Branch((kernel, kernel), ONE, (rate * (kernel // 2),) * 2, (rate, rate))


CASES = (  # batch, (H, W), branches, summed
    (1, (9, 11), [atrous(2)], False),
    (3, (7, 5), [atrous(9)], False),
    (2, (13, 8), [Branch((3, 3), ONE, (4, 2), (4, 2))], False),
    (2, (10, 10), [Branch((5, 3), ONE, (6, 1), (3, 2))], False),
    (2, (11, 9), [Branch((3, 3), (2, 3), (3, 3), (3, 3))], False),
    (1, (1, 5), [Branch((3, 3), (1, 2), (4, 2), (2, 1))], False),  # pixels without a live tap
    (2, (9, 8), [Branch((3, 3), ONE, (0, 0), (2, 2))], False),
    (2, (8, 9), [atrous(1, 1), atrous(2), atrous(4), atrous(2, 5)], False),
    (2, (8, 9), [atrous(1), atrous(2), atrous(4), atrous(12)], True),
)


def times(step):
    return cuts.Times(step=step, start=4.0, store=2.0, slot=4.0, read=0.1, launch=8.0)


CUTS = (
    plans.Cut(tile=16, columns=1, chunks=3, processors=1, times=times(1.0)),  # whole tiles
    plans.Cut(tile=16, columns=2, chunks=5, processors=200, times=times(30.0)),  # split tiles
    plans.Cut(tile=32, columns=1, chunks=1, processors=500, times=times(30.0)),  # by taps alone
    plans.Cut(tile=16, columns=1, chunks=50, processors=7, times=times(1.0)),  # uneven parts
)


def sizes_of(batch, size, branch):
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, *branch, strict=True)
    ]
    return Sizes(batch, *size, *out)


def is_live(sizes, branch, pixel, dy, dx):
    row, x = divmod(pixel, sizes.out_width)
    y = row % sizes.out_height
    inside = (y * branch.stride[0] + dy, x * branch.stride[1] + dx)
    return 0 <= inside[0] < sizes.height and 0 <= inside[1] < sizes.width


def expected(sizes, branches):
    """Every (branch, pixel, number of a live tap in the weight, dy, dx)."""
    found = set()
    pixels = range(sizes.batch * sizes.out_height * sizes.out_width)
    for b, branch in enumerate(branches):
        for i, j in itertools.product(*map(range, branch.kernel_size)):
            dy = i * branch.dilation[0] - branch.padding[0]
            dx = j * branch.dilation[1] - branch.padding[1]
            number = i * branch.kernel_size[1] + j
            found |= {(b, p, number, dy, dx) for p in pixels if is_live(sizes, branch, p, dy, dx)}
    return found


@pytest.mark.parametrize("cut", CUTS, ids=("whole", "split", "by taps", "stream"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_live_tap_of_every_pixel_once(case, cut):
    batch, size, branches, summed = case
    sizes = sizes_of(batch, size, branches[0])
    plan = plans.build(sizes, tuple(branches), cut, summed, False)
    pixels, taps = plan.pixels.numpy(), plan.taps.numpy()
    walked, slots, previous = Counter(), {}, np.inf
    for tile, branch, slot, low, high, *ranges in plan.items.tolist():
        ranges = list(zip(ranges[::2], ranges[1::2], strict=True))
        steps = sum(end - first for first, end in ranges) * (high - low)
        assert steps <= previous, "longest first"
        previous = steps
        slots.setdefault((tile, branch), []).append(slot)
        for b, (first, end) in enumerate(ranges):
            b = b if summed else branch
            for number, dy, dx, _ in taps[first:end].tolist():
                for p in set(pixels[tile].tolist()):
                    live = is_live(sizes, branches[b], p, dy, dx)
                    assert live or plan.mixed, "nothing masks a dead tap"
                    if live:
                        walked.update((b, p, number, dy, dx, c) for c in range(low, high))
    assert set(walked) == {(*e, c) for e in expected(sizes, branches) for c in range(cut.chunks)}
    assert set(walked.values()) <= {1}
    check_slots(plan, slots)


def check_slots(plan, slots):
    """Each split tile is reduced once, over its own slots; the others are stored at once."""
    used = []
    for tile, branch, first, count in plan.reductions.tolist():
        mine = slots.pop((tile, branch))
        assert sorted(mine) == list(range(first, first + count))
        used += mine
    assert sorted(used) == list(range(plan.slots))
    assert all(mine == [-1] for mine in slots.values())


def test_cuts_split_as_they_are_meant_to():
    sizes, branches = Sizes(1, 9, 11, 9, 11), (atrous(2),)
    slots = [plans.build(sizes, branches, cut, False, False).slots for cut in CUTS]
    assert slots[0] == 0
    assert min(slots[1:3]) > 7


def test_stream_k_cuts_where_a_round_of_whole_tiles_is_not_full():
    """In parts of different lengths, and only so many tiles as a run's border falls into."""
    sizes, branches, cut = Sizes(1, 9, 11, 9, 11), (atrous(2),), CUTS[3]
    plan = plans.build(sizes, branches, cut, False, False)
    assert 0 < plan.slots < 2 * cut.processors
    parts = plan.items[plan.items[:, 2] >= 0]
    assert len(set((parts[:, 4] - parts[:, 3]).tolist())) > 1
    whole = plans.build(sizes, branches, cut._replace(processors=1), False, False)
    assert whole.slots == 0
    assert plans.estimate(sizes, branches, cut, False, False) < cuts.time_of(
        tiles_of(sizes, branches, 16, False, False).taps, cut, None
    )


TAPS = np.array([9, 9, 9, 9, 6, 6, 6, 4, 4, 1, 0])


def steps_of(parts):
    return [(end - first) * (high - low) for first, end, low, high in parts]


@pytest.mark.parametrize("chunks", [1, 4, 32])
@pytest.mark.parametrize("line", [range(10), range(4), range(5, 10)], ids=str)
def test_runs_are_of_one_length(chunks, line):
    """But for a chunk of all taps, or a tap of all chunks, at either end."""
    length = TAPS[line.start : line.stop].sum() * chunks / 6
    way = cuts.stream_cuts(TAPS, chunks, line, length, 0.0)
    found, ends, end = way.build(), [], 0
    assert found
    assert set(found) == set(np.flatnonzero(way.is_cut).tolist()) <= set(line)
    for i in line:
        t = int(TAPS[i])
        parts = found.get(i, ((0, t, 0, chunks),))
        pieces = set()
        for first, last, low, high in parts:
            pieces |= set(itertools.product(range(first, last), range(low, high)))
        assert len(pieces) == sum(steps_of(parts)) == t * chunks
        for n in steps_of(parts):
            end += n
            ends.append(end)
    for k in range(1, 6):
        assert min(abs(e - k * length) for e in ends) <= min(9, chunks) / 2


@pytest.mark.parametrize("chunks", [1, 5, 32])
def test_what_is_timed_is_what_is_cut(chunks):
    cut = plans.Cut(tile=16, columns=2, chunks=chunks, processors=7, times=times(1.0))
    ways = list(cuts.candidates(TAPS, cut))
    assert len(ways) > 50
    for way in ways:
        found = way.build()
        assert set(found) == set(np.flatnonzero(way.is_cut).tolist())
        assert all(len(parts) > 1 for parts in found.values())
        parts = [n for i in sorted(found) for n in steps_of(found[i])]
        assert sorted(parts) == sorted(way.steps.tolist())


def test_the_best_way_is_chosen():
    cut = plans.Cut(tile=16, columns=2, chunks=32, processors=7, times=times(1.0))
    least = min(cuts.time_of(TAPS, cut, way) for way in (None, *cuts.candidates(TAPS, cut)))
    found, time = cuts.choose_cuts(TAPS, cut)
    assert time == least < cuts.time_of(TAPS, cut, None)
    assert found
    assert cuts.least_time(TAPS, cut) < time


def test_no_cuts_are_tried_where_the_time_is_over_the_most():
    problem = (Sizes(1, 9, 11, 9, 11), (atrous(2),), CUTS[3], False, False)
    time = plans.estimate(*problem)
    least = cuts.least_time(tiles_of(*problem[:2], 16, False, False).taps, CUTS[3])
    assert plans.estimate(*problem, time) == time
    assert plans.estimate(*problem, 0.9 * least) == np.inf


def test_a_part_is_worth_its_store():
    taps = np.array([9] * 8)
    few, many = (
        cuts.stream_cuts(taps, 32, range(8), 8 * 288 / 7, least).build() for least in (60.0, 0.0)
    )
    assert len(few) < len(many)
    assert min(n for parts in few.values() for n in steps_of(parts)) > 60


def test_joined_branches_walk_the_taps_of_summed_ones():
    """Which are counted through in the weight."""
    sizes, branches = Sizes(2, 8, 9, 8, 9), (atrous(1), atrous(2, 1), atrous(4, 5), atrous(12))
    summed = make_tiles(sizes, branches, 16, summed=True)
    joined = make_tiles(sizes, [Joined(branches)], 16)
    assert np.array_equal(summed.pixels(), joined.pixels())
    assert np.array_equal(summed.lists, joined.lists)
    first = (0, 9, 10, 35)
    for ours, theirs in zip(joined.tap_lists, summed.tap_lists, strict=True):
        assert ours == tuple((0, first[b] + tap, dy, dx) for b, tap, dy, dx in theirs)


def test_pixels_without_a_live_tap_have_a_tile():
    _, size, branches, _ = CASES[5]
    tiles = make_tiles(sizes_of(1, size, branches[0]), branches, 16)
    assert 0 in tiles.taps


def test_reversed_taps():
    sizes, branch = Sizes(1, 9, 9, 9, 9), atrous(3)
    forward = make_tiles(sizes, [branch], 16).tap_lists
    backward = make_tiles(sizes, [branch], 16, flipped=True).tap_lists
    assert len(forward) == len(backward)
    for a, b in zip(forward, backward, strict=True):
        assert [t[2:] for t in a] == [t[2:] for t in b]
        assert [8 - t[1] for t in a] == [t[1] for t in b]


@pytest.mark.parametrize(("rate", "most"), [(6, 0.795), (12, 0.60), (18, 0.425)])
def test_executed_share(rate, most):
    """Of a dense convolution's multiplications; 0.772, 0.574 and 0.405 touch real pixels."""
    tiles = make_tiles(Sizes(8, 33, 33, 33, 33), [atrous(rate)], 128)
    assert tiles.taps.sum() * 128 / (9 * 8 * 33 * 33) <= most
    pixels = np.concatenate([np.unique(t) for t in tiles.pixels()])
    assert np.array_equal(np.sort(pixels), np.arange(8 * 33 * 33))


def test_more_pixels_than_an_int32_counts():
    cut = CUTS[0]
    sizes = Sizes(1 << 12, 1 << 10, 1 << 10, 1 << 10, 1 << 10)
    with pytest.raises(ValueError, match="more pixels than an int32 counts"):
        plans.build(sizes, (atrous(2),), cut, False, False)


def test_cache_keeps_the_plans_that_were_used_last():
    cache, cpu = PlanCache(most=2), torch.device("cpu")
    sizes = [Sizes(1, n, 9, n, 9) for n in (5, 6, 7)]

    def get(i):
        return cache.get(cpu, plans.build, sizes[i], (atrous(2),), CUTS[0], False, False)

    first, second = get(0), get(1)
    assert get(0) is first
    get(2)
    assert get(0) is first
    assert get(1) is not second
    assert len(cache.plans) == 2


def test_the_cache_holds_few_bytes():
    """Plans of many large maps would fill a GPU's memory; the last one is kept in any case."""
    sizes = [Sizes(1, n, 9, n, 9) for n in (5, 6, 30)]
    problems = [(size, (atrous(2),), CUTS[0], False, False) for size in sizes]
    bytes_of = [plans.build(*problem).buffer.nbytes for problem in problems]
    assert bytes_of[2] > sum(bytes_of[:2])
    cache, cpu = PlanCache(most_bytes=sum(bytes_of[:2])), torch.device("cpu")
    for problem, left in zip(problems, (1, 2, 1), strict=True):
        plan = cache.get(cpu, plans.build, *problem)
        assert len(cache.plans) == left
        assert cache.get(cpu, plans.build, *problem) is plan


def test_tiles_that_are_kept_hold_nothing_for_each_pixel():
    """Many launches' are, and forms are chosen by estimates, which ask for no pixels."""
    sizes = Sizes(16, 1024, 2048, 1024, 2048)
    tracemalloc.start()
    tiles = tiles_of(sizes, (atrous(2), atrous(4)), 128, False, False)
    assert tiles.taps.sum() > 9 * math.prod(sizes[:3]) // 128
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pixels = 2 * math.prod(sizes[:3])
    assert held < pixels // 2
    assert most < pixels


def test_memory_of_a_plan_is_allocated_by_a_thread_of_its_own():
    """torch.compile's CUDA graphs take what their thread allocates, and refuse what stays."""

    class Buffer:
        nbytes = 0

        def to(self, device):
            threads.append(threading.current_thread())
            return self

    class OnlyBuffer(NamedTuple):
        buffer: Buffer

    threads = []
    for _ in range(2):
        PlanCache().get(torch.device("cpu"), lambda: OnlyBuffer(Buffer()))
    assert threading.current_thread() not in threads
    assert len(threads) == 2
    assert not any(thread.is_alive() for thread in threads)


def test_gradients_of_the_weight_share_the_cache():
    """A plan of theirs is the one that is built on the host, and is kept."""
    cache, cpu = PlanCache(), torch.device("cpu")
    problem = (Sizes(2, 9, 11, 9, 11), atrous(2), 3, 16, 5)
    plan = cache.get(cpu, weight_grad_plan.build, *problem)
    assert cache.get(cpu, weight_grad_plan.build, *problem) is plan
    pieces = weight_grad_plan.make_pieces(*problem)
    assert (plan.pieces.tolist(), plan.slots.tolist()) == pieces
    places = {t.untyped_storage().data_ptr() for t in plan}
    assert places == {plan.buffer.data_ptr()}, "kept while the buffer is"


def test_a_plan_moves_with_its_buffer():
    """As it does to a GPU."""
    plan = plans.build(Sizes(1, 9, 11, 9, 11), (atrous(2),), CUTS[1], False, False)
    copy = moved(plan, plan.buffer.clone())
    plan.buffer.zero_()
    expected = plans.build(Sizes(1, 9, 11, 9, 11), (atrous(2),), CUTS[1], False, False)
    assert all(t.data_ptr() % 16 == 0 for t in copy[:5]), "Triton compiles for aligned pointers"
    for ours, theirs in zip(copy, expected, strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_threads_share_the_cache():
    cache, cpu = PlanCache(), torch.device("cpu")
    found = []

    def work():
        for n in range(5, 25):
            sizes = Sizes(1, n, 9, n, 9)
            problem = (sizes, (atrous(2),), CUTS[0], False, False)
            found.append((n, cache.get(cpu, plans.build, *problem)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 80
    assert len({id(plan) for _, plan in found}) == len(cache.plans) == 20


def test_plans_are_built_on_the_host_whatever_torch_s_default_is():
    """torch.compile makes the GPU the default while it warms up CUDA graphs."""
    problem = (Sizes(1, 9, 11, 9, 11), (atrous(2),), CUTS[1], False, False)
    expected = plans.build(*problem)
    with torch.device("meta"):
        plan = plans.build(*problem)
    assert torch.equal(plan.buffer, expected.buffer)
