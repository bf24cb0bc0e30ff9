"""What every test gets: a seed, two threads; and what some ask for."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
import torch

from fastseg._core import extension

SHARED = Path(__file__).resolve().parents[2] / "shared"
M_PERTURB = -6  # of glibc's mallopt


def pytest_collection_modifyitems(items):
    """Refuses names of tests that hold an object's address, even cut short.

    Processes that share the tests out among them know these by their names, which must be the same
    in each.
    """
    of_objects = [item.nodeid for item in items if re.search(r"<function|<\S+ object", item.name)]
    if of_objects:
        raise pytest.UsageError(f"give these tests names that hold no address: {of_objects}")


@pytest.fixture(autouse=True)
def _same_start():
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def one_thread(_same_start):
    """For many calls on a few numbers each: two threads would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def ieee_convolutions():
    """float32 convolutions without TF32, which torch takes on GPUs by default."""
    kept = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = kept


@pytest.fixture
def garbage_in_new_memory():
    """Fresh memory holds 0xfe, freed memory 0x01, so that an element never written shows.

    As a float that is below -1e38 (NaN in float16), as a code or an index out of any range. Chunks
    below a kilobyte may come from malloc's caches, with a pointer in their first bytes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(M_PERTURB, 0x01) != 1:
        pytest.skip("needs glibc's mallopt")
    yield
    mallopt(M_PERTURB, 0)


@pytest.fixture(params=["forward", "reverse", "shuffled"])
def order(request, monkeypatch):
    """Each order of the threads of CUDA kernels on the CPU, with garbage in new memory."""
    from tests.cuda_on_cpu.loader import load

    load()
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", request.param)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_PERTURB, 0x80)
    yield request.param
    mallopt(M_PERTURB, 0)


@pytest.fixture(params=extension.available_simd_levels() or ["reference"])
def simd_level(request):
    """Each instruction set of the CPU kernels in turn."""
    if request.param == "reference":
        yield request.param
        return
    with extension.use_simd_level(request.param):
        yield request.param


@pytest.fixture
def shared_data():
    """shared_data("data", "camvid"): that path in the shared folder; skips where it is not."""

    def find(*parts: str) -> Path:
        path = SHARED.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"no {'/'.join(parts)} in {SHARED}")
        return path

    return find
