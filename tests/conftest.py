"""What every test gets: a seed, one or two threads; and what some ask for."""

from __future__ import annotations

import ctypes
import re
import zlib
from pathlib import Path

import pytest
import torch

from fastseg._core import extension

SHARED = Path(__file__).resolve().parents[2] / "shared"
M_PERTURB = -6  # of glibc's mallopt
LONGEST = (
    "export/test_export.py",
    "core/test_cuda_build.py",
    "cuda_on_cpu/test_address_sanitizer.py",
    "crf/test_exact_gaussian_filter_triton.py",
    "train/test_own_pictures.py",
    "core/test_oldest_triton.py",
    "core/test_fork.py",
    "export/test_onnx_export.py",
    "packaging/test_hub.py",
    "train/test_train.py",
    "cuda_on_cpu/test_cuda_mean_field.py",
    "crf/test_densecrf_sanitizers.py",
    "cuda_on_cpu/test_cuda_races.py",
    "core/test_memory_layouts.py",
    "optimize/test_optimize_tools.py",
    "optimize/test_optimize_packaged.py",
    "conv/test_depthwise_conv2d_triton.py",
    "crf/test_mean_field.py",
    "conv/test_atrous_conv2d_triton.py",
    "core/test_kept_memory.py",
    "cuda_on_cpu/test_cuda_losses.py",
    "optimize/test_optimize_witness.py",
    "optimize/test_optimize_heads.py",
    "conv/test_atrous_conv2d_weight_grad_triton.py",
    "core/test_memory_layouts_triton.py",
    "cuda_on_cpu/test_cuda_bindings.py",
    "optimize/test_optimize_sharded.py",
    "optimize/test_optimize_composes.py",
    "optimize/test_optimize_aspp.py",
    "conv/test_atrous_conv2d_torch.py",
    "cuda_on_cpu/test_cuda_depthwise.py",
    "optimize/test_optimize_changed.py",
    "cuda_on_cpu/test_cuda_filter.py",
    "packaging/test_wheel.py",
    "cli/test_cli.py",
    "conv/test_few_outputs_triton.py",
)
"""The files that take 20 seconds or more, the longest first: nvcc, where there is one, minutes."""


def pytest_collection_modifyitems(items):
    """Puts the longest files first, and refuses names of tests that hold an object's address.

    Processes share the tests out file by file: a long one that came last would leave all but one
    without work. They know tests by their names, which must be the same in each and may not hold an
    address, even cut short.
    """
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    if missing := [str(path) for path in places if not path.exists()]:
        raise pytest.UsageError(f"LONGEST names files that are not there: {missing}")
    items.sort(key=lambda item: places.get(item.path, len(places)))
    of_objects = [item.nodeid for item in items if re.search(r"<function|<\S+ object", item.name)]
    if of_objects:
        raise pytest.UsageError(f"give these tests names that hold no address: {of_objects}")


def threads_of(nodeid: str) -> int:
    """A test's number of torch's threads, always the same: one in three has two.

    Between them the kernels' ways for one thread and for several are tested with all kinds of
    arguments. Each of pytest-xdist's processes has a processor: a sixth more time goes by where all
    tests have two threads, which wait for each other.
    """
    return 2 if zlib.crc32(nodeid.encode()) % 3 == 0 else 1


@pytest.fixture(autouse=True)
def _same_start(request):
    threads = torch.get_num_threads()
    # torch.manual_seed notes for CUDA who called it, a millisecond in a stack as deep as pytest's.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    torch.set_num_threads(threads_of(request.node.nodeid))
    yield
    torch.set_num_threads(threads)
    onednn = torch.backends.mkldnn
    left = {onednn.conv.fp32_precision, onednn.matmul.fp32_precision}
    assert left <= {"none", "ieee"}, f"the test leaves float32 computed in {left} for all others"


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
