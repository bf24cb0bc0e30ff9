"""Checks of prepared calls in what is around them: streams, captures, threads, modes, errors."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from triton import knobs

import fastseg
from fastseg._core import prepared_calls
from fastseg.kernels.conv import atrous_conv2d as kernels
from fastseg.kernels.conv import configs, prepared_call
from fastseg.kernels.conv import launch as launches
from fastseg.kernels.conv.plan_cache import cache
from fastseg.kernels.conv.recording import Recording
from tests.conv.recorded_calls.checking import (
    ONE,
    SPLIT,
    branch,
    check,
    compare,
    convolve,
    driver,
    pyramid,
    randn,
    tensors,
)


@check
def test_streams():
    given = tensors()
    prepared_calls.forget()
    convolve(given)
    driver.recorded_streams.clear()
    driver.launches()
    for stream in (7, 8, 7, 7, 8):
        driver.stream = stream
        convolve(given)
    driver.stream = 0
    assert [one.stream for one in driver.launches()] == [7, 8, 7, 7, 8]
    assert [stream for _, stream in driver.recorded_streams] == [7, 8]


@check
def test_captures():
    given = tensors(channels=80)
    prepared_calls.forget()
    cache.captured.clear()
    with capturing():
        convolve(given)
        assert not prepared_calls.CALLS, "what a capture planned belongs to its graph"
    convolve(given)
    driver.recorded_streams.clear()
    driver.launches()
    with capturing():
        convolve(given)
    assert [one.by_triton for one in driver.launches()] == [False]
    assert not driver.recorded_streams
    (plan,) = cache.captured.values()
    assert any(plan is other for other in cache.plans.values())
    convolve(given)
    assert driver.recorded_streams, "the stream was only captured before"


@contextlib.contextmanager
def capturing():
    driver.capturing = True
    try:
        yield
    finally:
        driver.capturing = False


@check
def test_threads():
    prepared_calls.forget()
    convolve(tensors(**SPLIT))
    driver.launches()
    threads, of_threads, errors = [], [tensors(**SPLIT) for _ in range(4)], []

    def work(given):
        try:
            for _ in range(200):
                convolve(given)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(given,)) for given in of_threads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    found = driver.launches()
    assert len(found) == 4 * 200 * 2
    pairs = {(given[0].data_ptr(), given[1].data_ptr()) for given in of_threads}
    places = []
    for launch in found:
        if launch.kernel == "atrous_conv2d_kernel":
            of = launch.parameters
            places.append(tuple(int.from_bytes(of[i : i + 8], "little") for i in (0, 8)))
    assert set(places) == pairs
    assert not any(launch.by_triton for launch in found)


@check
def test_a_forked_child_prepares_nothing_of_its_parent():
    """Nor does it free a plan, for which CUDA may ask the parent's streams how far they are."""
    prepared_calls.forget()
    convolve(tensors())
    (call,) = {id(call): call for call in prepared_calls.CALLS.values()}.values()
    plan = weakref.ref(call.plans[0].buffer)
    cache.plans.clear()
    del call
    child = os.fork()
    if child == 0:
        os._exit(1 if prepared_calls.CALLS else 2 if plan() is None else 0)
    assert os.waitpid(child, 0)[1] == 0
    assert prepared_calls.CALLS


@check
def test_whoever_observes_triton_sees_every_launch():
    given, seen = tensors(), []
    compare(convolve, given, ONE)

    def hook(metadata):
        seen.append(metadata.get()["name"])

    for chain in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        chain.add(hook)
        seen.clear()
        convolve(given)
        assert seen == ["atrous_conv2d_kernel"]
        chain.remove(hook)
    assert [one.by_triton for one in driver.launches()] == [True, True]
    convolve(given)
    assert [one.by_triton for one in driver.launches()] == [False]


@check
def test_another_device_is_the_current_one():
    given = tensors()
    compare(convolve, given, ONE)
    driver.device = 1
    try:
        assert prepared_calls.run("atrous_conv2d", given, (1, "same", 4, 1, "relu")) is None
    finally:
        driver.device = 0
    assert not driver.launches()


@check
def test_tensors_on_a_device_that_is_not_the_current_one():
    """Prepared as well: the op makes it the current one, and finds what is prepared there."""
    x, branches = randn(1, 64, 13, 13), pyramid()
    pooled, projected = branch(160, 1, 1, 48), branch(128, 1, 1, 48)
    given, before = tensors(), torch.cuda.device_of

    @contextlib.contextmanager
    def device_of(_):
        outer, driver.device = driver.device, 0
        yield
        driver.device = outer

    torch.cuda.device_of = device_of
    try:
        for run in (
            lambda: convolve(given),
            lambda: fastseg.aspp(x, branches, projected),
            lambda: fastseg.aspp(x, branches, pooled, pool=branch(64, 1, 1)),
        ):
            run()
            driver.launches()
            driver.device = 1
            run()
            driver.device = 0
            launched = driver.launches()
            assert launched
            assert not any(one.by_triton for one in launched), run
    finally:
        driver.device, torch.cuda.device_of = 0, before


@check
def test_an_allocator_with_other_addresses():
    given = tensors()
    compare(convolve, given, ONE)
    before = prepared_call._empty

    def elsewhere(size, stride, dtype):
        return torch.empty(torch.Size(size).numel() + 1, dtype=dtype)[1:].as_strided(size, stride)

    prepared_call._empty = elsewhere
    try:
        convolve(given)
    finally:
        prepared_call._empty = before
    assert [one.by_triton for one in driver.launches()] == [True]


@check
def test_the_driver_s_errors():
    given = tensors()
    compare(convolve, given, ONE)
    message = "CUDA error 700, an illegal memory access"
    with driver.failing(700), pytest.raises(RuntimeError, match=message):
        convolve(given)
    convolve(given)


@check
def test_tuning_drops_what_was_chosen_before():
    given = tensors()
    compare(convolve, given, ONE)
    launch = launches.launch_of(given[0], 40, [kernels.Branch((3, 3), (1, 1), (4, 4), (4, 4))])
    before = configs.measure
    configs.measure = lambda run: run() is None
    try:
        launches.autotune(launch, given[0], given[1:2], torch.empty_like(given[5]))
    finally:
        configs.measure = before
        configs.tuned.clear()
    assert not prepared_calls.CALLS


@check
def test_what_is_not_known_is_left_to_triton():
    given = tensors()
    for spoil in (
        lambda r: setattr(r, "unknown", True),
        lambda r: r.places.clear(),
        lambda r: setattr(r, "kernels", []),
    ):
        prepared_calls.forget()
        keep = Recording.keep

        def spoiled(self, *arguments, spoil=spoil, keep=keep):
            spoil(self)
            return keep(self, *arguments)

        Recording.keep = spoiled
        try:
            convolve(given)
        finally:
            Recording.keep = keep
        assert not prepared_calls.CALLS


@check
def test_a_profiler_shows_the_op():
    x, branches = randn(1, 64, 13, 13), pyramid()
    project, pool = branch(160, 1, 1, 48), branch(64, 1, 1)
    given = tensors()
    for _ in range(2):
        driver.launches()
        fastseg.aspp(x, branches, project, pool=pool)
        convolve(given)
    with torch.profiler.profile() as profile:
        fastseg.aspp(x, branches, project, pool=pool)
        convolve(given)
    names = [event.name for event in profile.events()]
    assert "fastseg::aspp" in names
    assert "fastseg::atrous_conv2d" in names
    launched = driver.launches()
    assert launched
    assert not any(one.by_triton for one in launched)


@check
def test_modes_see_the_ops():
    x, branches = randn(1, 64, 13, 13), pyramid()
    project, pool = branch(160, 1, 1, 48), branch(64, 1, 1)
    given = tensors()
    fastseg.aspp(x, branches, project, pool=pool)
    convolve(given)
    with FlopCounterMode(display=False) as counter:
        fastseg.aspp(x, branches, project, pool=pool)
        convolve(given)
    assert {torch.ops.fastseg.aspp, torch.ops.fastseg.atrous_conv2d} <= {
        *counter.get_flop_counts()["Global"]
    }


@check
def test_bad_input_of_a_prepared_kind_still_raises():
    x, branches, project = randn(1, 64, 13, 13), pyramid(), branch(128, 1, 1, 48)
    fastseg.aspp(x, branches, project)
    given = tensors()
    convolve(given)
    for bad in (
        lambda: fastseg.aspp(x, branches, project, pool="none"),
        lambda: fastseg.aspp([x], branches, project),
        lambda: convolve([given[0], given[1], given[2][:1], *given[3:]]),
        lambda: convolve(given, activation=["relu"]),
    ):
        with pytest.raises((TypeError, RuntimeError)):
            bad()


@check
def test_kernels_outside_of_the_recording():
    """Whatever the call did with its memory besides is not known."""
    given, launch = tensors(**SPLIT), Recording.launch
    for missing in ("atrous_conv2d_kernel", "reduce_kernel"):

        def launch_unseen(self, kernel, grid, *arguments, missing=missing, **options):
            if kernel.__name__ == missing:
                kernel[grid](*arguments, **options)
            else:
                launch(self, kernel, grid, *arguments, **options)

        prepared_calls.forget()
        Recording.launch = launch_unseen
        try:
            convolve(given)
        finally:
            Recording.launch = launch
        assert not prepared_calls.CALLS
