"""What the model of a GPU makes of counts (benchmarks.gpu_model), by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from benchmarks.gpu_model.__main__ import further, works, works_at
from benchmarks.gpu_model.cases import mean_field_case
from benchmarks.gpu_model.instructions import Kernel
from benchmarks.gpu_model.model import ADDED, Work
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.tracing import Launch, Site


def site(place: str, requests: int) -> Site:
    return Site(place, "load", False, 4, requests, 0, 0, 0, 0, 0)


def launch(*sites: Site) -> Launch:
    return Launch("kernel", 1, 32, 0, 0, 0, 0, 0, 0, 0, sites, ())


def test_each_run_is_passed_as_often_as_its_accesses():
    runs = ((10, (("cuda/k.cu:5", False),)), (7, ()), (100, (("cuda/k.cu:6", False),)))
    kernel = Kernel(32, runs)
    assert kernel.issued(launch(site("cuda/k.cu:5", 8), site("cuda/k.cu:6", 3))) == 80 + 21 + 300


def test_a_load_may_have_the_line_that_uses_what_was_loaded():
    """It must not count for another access of the same line of the kernel."""
    entry, row = "cuda/k.cu:5 > cuda/rows.h:2", "cuda/k.cu:5 > cuda/rows.h:3 > cuda/pack.h:"
    kernel = Kernel(32, ((10, ((entry, False),)), (100, ((row + "19", False),))))
    assert kernel.issued(launch(site(entry, 8), site(row + "30", 3))) == 80 + 300


def test_further_images_add_the_same_step():
    one = Work("kernel", **dict.fromkeys(ADDED, 1.0), registers=32, occupancy=1.0)
    two = replace(one, launches=1.0, blocks=3.0, issued=4.0)
    new = replace(one, kernel="new")
    found = further({"kernel": one}, {"kernel": two, "new": new}, 6)
    assert (found["kernel"].launches, found["kernel"].blocks, found["kernel"].issued) == (1, 15, 22)
    assert found["new"] == new


@pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here")
def test_a_batch_is_what_one_and_two_images_say():
    case = mean_field_case(24, 16, 3, "compat", images=3)
    modelled = {work.kernel: work for work in works(case)}
    traced_at_once = works_at(case, partial(case.call, images=3), case.wanted)
    assert modelled.keys() == traced_at_once.keys()
    for kernel, work in traced_at_once.items():
        assert modelled[kernel].launches == pytest.approx(work.launches)
        assert modelled[kernel].l2_bytes == pytest.approx(work.l2_bytes, rel=0.2, abs=2000)
