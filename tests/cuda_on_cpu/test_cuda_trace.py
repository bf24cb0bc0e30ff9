"""What counts CUDA kernels' accesses and finds races, on kernels whose counts are known."""

from __future__ import annotations

import ctypes

import pytest
import torch

from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import load
from tests.cuda_on_cpu.tracing import Trace, short_name, without_parameters

pytestmark = pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here")
WARP, OF_WARP, OF_BLOCK, OF_GRID = 32, 0, 1, 2


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return load("traced")[0]


def pointer(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def strided(kernels, blocks: int, global_stride: int, shared_stride: int) -> Trace:
    x = aligned(blocks * WARP * global_stride).normal_()
    out = aligned(blocks * WARP)
    with Trace(finds_races=True) as trace:
        kernels.run_strided(pointer(x), pointer(out), blocks, global_stride, shared_stride)
    torch.testing.assert_close(out, x[::global_stride], rtol=0, atol=0)
    return trace


def aligned(floats: int) -> torch.Tensor:
    """New memory that begins with a sector."""
    whole = torch.empty(floats + 8)
    return whole[-whole.data_ptr() % 32 // 4 :][:floats]


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (4, 16), (8, 32), (64, 32)])
def test_sectors_of_a_request(kernels, stride, sectors):
    (launch,) = strided(kernels, 3, stride, 1).launches
    assert (launch.name, launch.blocks, launch.threads) == ("strided", 3, WARP)
    (read,) = [s for s in launch.sites if s.kind == "load" and not s.shared]
    (written,) = [s for s in launch.sites if s.kind == "store" and not s.shared]
    assert (read.bytes, read.requests, read.lanes, read.lane_bytes) == (4, 3, 96, 384)
    assert (read.sectors, written.sectors) == (3 * sectors, 3 * 4)
    assert read.efficiency == 4 / sectors
    assert (launch.read, launch.read_a_block, launch.written) == (3 * sectors, 3 * sectors, 12)
    assert "self_test.cu" in read.place


@pytest.mark.parametrize(("stride", "ways"), [(1, 1), (2, 2), (3, 1), (4, 4), (32, 32)])
def test_wavefronts_of_shared_memory(kernels, stride, ways):
    (launch,) = strided(kernels, 2, 1, stride).launches
    shared = [s for s in launch.sites if s.shared]
    assert {s.kind for s in shared} == {"load", "store"}
    assert all((s.wavefronts, s.least_wavefronts) == (2 * ways, 2) for s in shared)
    assert launch.shared_bytes == WARP * stride * 4


def test_memory_is_fresh_once(kernels):
    x, out = aligned(WARP), aligned(WARP)
    with Trace() as trace:
        for _ in range(2):
            kernels.run_strided(pointer(x), pointer(out), 1, 1, 1)
    first, second = trace.launches
    assert (first.fresh_read, first.fresh_written) == (4, 4)
    assert (second.fresh_read, second.fresh_written) == (0, 0)
    assert (second.read, second.written) == (4, 4)


@pytest.mark.parametrize("meeting", [OF_WARP, OF_BLOCK, OF_GRID])
@pytest.mark.parametrize("thread_order", ["forward", "reverse", "shuffled"])
def test_races(kernels, meeting, thread_order, monkeypatch):
    """Found without a barrier, whatever the order; none with it, or with atomics.

    A shuffle is no barrier of a warp's memory.
    """
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", thread_order)
    out = torch.zeros(128, dtype=torch.int32)
    for ordered in (True, False):
        with Trace(finds_races=True) as trace:
            kernels.run_hand_over(pointer(out), meeting, ctypes.c_bool(ordered))
        assert bool(trace.races) is not ordered
        for race in trace.races:
            assert race.shared is (meeting != OF_GRID)
            assert race.across_blocks is (meeting == OF_GRID)
            assert all("self_test.cu" in place for place in race.places)


def test_exchanges_are_no_accesses(kernels):
    """A shuffle's words are in registers."""
    out = torch.zeros(128, dtype=torch.int32)
    with Trace() as trace:
        kernels.run_hand_over(pointer(out), OF_BLOCK, ctypes.c_bool(True))
    (launch,) = trace.launches
    assert sorted((s.kind, s.shared) for s in launch.sites) == [
        ("load", True),
        ("store", False),
        ("store", True),
    ]


def test_nothing_is_counted_outside(kernels):
    x, out = aligned(WARP), aligned(WARP)
    kernels.run_strided(pointer(x), pointer(out), 1, 1, 1)
    with Trace() as trace:
        pass
    assert trace.launches == []


def test_names():
    whole = "void a::(anonymous namespace)::pool<float, B<(C)4>, false>(B<float>, a::Layout)"
    assert without_parameters(whole) == "a::pool<float, B<(C)4>, false>"
    assert short_name(whole) == "pool"
    assert short_name("a::b(int*, long)") == "b"
