"""Checks of prepared calls with a stand-in for the CUDA driver; `main` prints what each raised.

They compare what kernels are launched with when Triton launches them and when a prepared call does.
`test_prepared_calls` runs them in a program of their own, which installs the stand-in first.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import threading
import traceback

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from triton import knobs

import fastseg
from fastseg._core import prepared_calls
from benchmarks import driver_stand_in
from fastseg.kernels.conv import aspp as pyramid_kernels
from fastseg.kernels.conv import atrous_conv2d as kernels
from fastseg.kernels.conv import choice, configs, prepared_call
from fastseg.kernels.conv import launch as launches
from fastseg.kernels.conv.plan_cache import cache
from fastseg.kernels.conv.recording import Recording
from fastseg.ops.conv import atrous_conv2d_grad as grads
from fastseg.ops.conv.aspp import ASPPBranch

driver = driver_stand_in.driver()

SMALL = configs.Config(32, 32, 32, 4, 2)  # soon compiled
for key in list(configs.TABLE):
    configs.TABLE[key] = (SMALL,) * len(configs.TABLE[key])


def choose(form):
    """Lets this form compute whatever it can."""
    for module in (kernels, pyramid_kernels):
        module.choose_form = lambda *_, **options: form


choose(choice.LIVE_TAPS)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAST = torch.channels_last
LEAST_ADDRESS = 1 << 40  # words of parameters below are integers, or two of them
checks = []


def check(function):
    checks.append(function)
    return function


def randn(*shape, dtype=BF16, layout=LAST, skipped=0):
    """A tensor that begins `skipped` elements into its memory."""
    size = torch.Size(shape).numel()
    t = torch.randn(size + skipped).to(dtype)[skipped:]
    if len(shape) < 4 or layout != LAST:
        return t.view(shape)
    n, c, h, w = shape
    return t.view(n, h, w, c).permute(0, 3, 1, 2)


def tensors(dtype=BF16, channels=48, outputs=40, bare=False, **options):
    """The tensors of a convolution: x, weight, bias, scale, shift, residual."""
    x = randn(2, channels, 13, 13, dtype=dtype, **options)
    weight = randn(outputs, channels, 3, 3, dtype=dtype)
    if bare:
        return [x, weight, None, None, None, None]
    vectors = [randn(outputs, dtype=d) for d in (dtype, F32, dtype)]
    return [x, weight, *vectors, randn(2, outputs, 13, 13, dtype=dtype)]


def convolve(given, dilation=4, activation="relu", **options):
    x, weight, bias, scale, shift, residual = given
    vectors = {"scale": scale, "shift": shift, "residual": residual}
    return fastseg.atrous_conv2d(
        x, weight, bias, dilation=dilation, activation=activation, **vectors, **options
    )


def words(launch, known):
    """A launch's parameters in words of 8 bytes; addresses as the tensors in which they lie."""
    named, found = [], launch.parameters + bytes(-len(launch.parameters) % 8)
    for i in range(0, len(found), 8):
        word = int.from_bytes(found[i : i + 8], "little")
        if word < LEAST_ADDRESS:
            named.append(word)
            continue
        for name, t in known.items():
            first = t.untyped_storage().data_ptr()
            if first <= word < first + t.untyped_storage().nbytes():
                named.append((name, word - first))
                break
        else:
            named.append("temporary")
    return named


def described(given, result):
    """The launches since the last call, comparable to those of other calls."""
    known = {f"tensor {i}": t for i, t in enumerate(given) if t is not None}
    known["result"] = result
    known |= {f"plan {i}": plan.buffer for i, plan in enumerate(cache.plans.values())}
    found = driver.launches()
    return (
        [(one[:-2], words(one, known)) for one in found],
        [one.by_triton for one in found],
    )


@contextlib.contextmanager
def nothing_freed():
    """Keeps what is allocated: an address is then one tensor's alone, as long as it is told by."""
    kept, before = [], (torch.empty, torch.Tensor.new_empty)

    def keeping(allocate):
        def allocated(*arguments, **options):
            kept.append(allocate(*arguments, **options))
            return kept[-1]

        return allocated

    torch.empty, torch.Tensor.new_empty = map(keeping, before)
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = before


ONE, SPLIT_IN = {"atrous_conv2d_kernel"}, {"atrous_conv2d_kernel", "reduce_kernel"}
PROJECTED = {"atrous_conv2d_kernel", "project_kernel"}


def compare(run, given, kernels):
    """That the second call launches what the first does, `kernels` among it, without Triton."""
    prepared_calls.forget()
    driver.launches()
    with nothing_freed():
        first, by_triton = described(given, run(given))
    assert kernels <= {launch[0] for launch, _ in first}
    assert all(by_triton)
    second, by_triton = described(given, run(given))
    assert not any(by_triton), "the second call was not prepared"
    assert first == second, f"{first}\n{second}"


SPLIT = {"channels": 512}


@check
def test_parameters_are_those_of_triton_s_launcher():
    for dtype in (F16, BF16, F32):
        for bare in (False, True):
            compare(convolve, tensors(dtype, bare=bare), ONE)


@check
def test_split_tiles_and_their_sum():
    for dtype in (BF16, F32):
        compare(convolve, tensors(dtype, **SPLIT), SPLIT_IN)
        compare(convolve, tensors(dtype, bare=True, **SPLIT), SPLIT_IN)


@check
def test_memory_that_begins_elsewhere():
    aligned = tensors()
    compare(convolve, aligned, ONE)
    for i in range(6):
        given = list(aligned)
        t = given[i]
        given[i] = randn(*t.shape, dtype=t.dtype, skipped=1)
        before = len(prepared_calls.CALLS)
        driver.launches()
        first, by_triton = described(given, convolve(given))
        assert all(by_triton), "prepared for another alignment"
        assert len(prepared_calls.CALLS) == before + 2  # as it was given, and with its geometry
        second, by_triton = described(given, convolve(given))
        assert not any(by_triton)
        assert first == second
    assert prepared_calls.run("atrous_conv2d", aligned, (1, "same", 4, 1, "relu")) is not None


@check
def test_channels_that_are_no_multiples_of_16():
    for channels, outputs in ((1, 40), (33, 17), (48, 1), (16, 16)):
        compare(convolve, tensors(channels=channels, outputs=outputs), ONE)


@check
def test_layouts():
    given = tensors(layout=torch.contiguous_format)
    prepared_calls.forget()
    first = convolve(given)
    driver.launches()
    second = convolve(given)
    (launch,) = driver.launches()
    assert not launch.by_triton
    for y in (first, second):
        assert y.is_contiguous()
        assert y.dtype == BF16
    given[1] = given[1].contiguous()
    given[5] = given[5].contiguous()
    convolve(given)
    driver.launches()
    convolve(given)
    (launch,) = driver.launches()
    assert not launch.by_triton


@contextlib.contextmanager
def torch_s_convolution():
    choose(choice.TORCH)
    try:
        yield
    finally:
        choose(choice.LIVE_TAPS)


@check
def test_torch_s_convolution_and_the_kernel_that_follows_it():
    for layout in (LAST, torch.contiguous_format):
        given = tensors(layout=layout)
        with torch_s_convolution():
            compare(convolve, given, {"apply_epilogue_kernel"})
            y = convolve(given)
            driver.launches()
        assert y.is_contiguous(memory_format=layout)
        assert not prepared_calls.find("atrous_conv2d", given, (1, "same", 5, 1, "relu"))


@check
def test_torch_s_convolution_alone():
    given = tensors(bare=True)
    prepared_calls.forget()
    with torch_s_convolution():
        first = convolve(given, activation="")
        assert len(prepared_calls.CALLS) == 2
        second = convolve(given, activation="")
    assert torch.equal(first, second)
    assert torch.equal(first, torch.conv2d(*given[:2], None, 1, 4, 4))
    assert not driver.launches()


@check
def test_few_outputs():
    choose(choice.FEW_OUTPUTS)
    try:
        for bare in (False, True):
            compare(convolve, tensors(outputs=5, bare=bare), {"add_taps_kernel"})
        x, branches = randn(1, 64, 13, 13), [b._replace(scale=None) for b in pyramid(outputs=5)]
        given = all_tensors(x, *branches)
        compare(lambda _: fastseg.aspp(x, branches, activation=None), given, {"add_taps_kernel"})
    finally:
        choose(choice.LIVE_TAPS)


@check
def test_joined_weights():
    choose(choice.JOINED)
    try:
        x, branches = randn(1, 64, 13, 13), [b._replace(scale=None) for b in pyramid()]
        given = all_tensors(x, *branches)
        compare(lambda _: fastseg.aspp(x, branches, activation=None), given, ONE)
    finally:
        choose(choice.LIVE_TAPS)


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


@check
def test_every_call_reads_the_tensors_that_it_is_given():
    given, others = tensors(), tensors()
    compare(convolve, given, ONE)
    both, _ = described(others, convolve(others))
    again, _ = described(given, convolve(given))
    assert both == again
    given[1].data = others[1]
    swapped, by_triton = described(others[:2], convolve(given))
    assert not any(by_triton)
    assert any(word == ("tensor 1", 0) for word in swapped[0][1])


@check
def test_other_kinds_are_not_confused():
    given = tensors()
    compare(convolve, given, ONE)
    others = [
        tensors(F16),
        tensors(F32),
        tensors(channels=64),
        tensors(outputs=41),
        tensors(bare=True),
        [*given[:3], None, *given[4:]],
        [*given[:3], given[3].to(BF16), *given[4:]],
        [given[0], given[1].contiguous(), *given[2:]],
        [given[0][:1], *given[1:5], given[5][:1]],
    ]
    for other in others:
        driver.launches()
        convolve(other)
        assert all(one.by_triton for one in driver.launches())
    for options in ({"dilation": 3}, {"activation": ""}, {"stride": 2}, {"padding": 3}):
        driver.launches()
        bare = [*given[:5], None]
        convolve(bare, **options)
        assert all(one.by_triton for one in driver.launches()), options
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        driver.launches()
        convolve(others[1])
        assert all(one.by_triton for one in driver.launches())
    finally:
        torch.backends.cudnn.conv.fp32_precision = "tf32"


@check
def test_an_argument_given_twice():
    """Which of them a kernel reads is not known from the addresses."""
    x, weight, _, scale, _, _ = tensors(outputs=48)
    prepared_calls.forget()
    same = [x, weight, None, scale, scale, None]
    for _ in range(2):
        driver.launches()
        convolve(same)
        assert all(one.by_triton for one in driver.launches())
    given = [x, weight, None, scale, scale.clone(), None]
    compare(convolve, given, ONE)
    for again in (given, same):
        assert not any(described(again, convolve(again))[1])


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
    convolve(tensors())
    assert prepared_calls.CALLS
    child = os.fork()
    if child == 0:
        os._exit(1 if prepared_calls.CALLS else 0)
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
def test_the_gradient_of_the_input():
    def run(given):
        return grads._triton_input_grad(*given, (13, 13), (1, 1), (4, 4), (4, 4), 1)

    for dtype in (BF16, F32):
        grad = randn(2, 40, 13, 13, dtype=dtype)
        compare(run, [grad, randn(40, 48, 3, 3, dtype=dtype)], ONE)


@check
def test_no_gradient_is_lost():
    """Autograd's way is the ordinary one; its op finds what is prepared."""
    given = tensors(bare=True)
    compare(convolve, given, ONE)
    given[1].requires_grad_()
    y = convolve(given, activation="")
    assert y.requires_grad
    y = convolve(given, activation="")
    assert y.requires_grad
    with torch.no_grad():
        assert not convolve(given).requires_grad
    with torch.inference_mode():
        assert convolve(given).is_inference()


def branch(channels, kernel, dilation, outputs=32, vectors=True):
    pair = (randn(outputs), randn(outputs)) if vectors else (None, None)
    return ASPPBranch(randn(outputs, channels, kernel, kernel), *pair, dilation)


def pyramid(channels=64, **options):
    rates = (2, 4, 6)
    return [branch(channels, 1, 1, **options), *(branch(channels, 3, r, **options) for r in rates)]


def all_tensors(x, *groups):
    return [x, *(t for b in groups for t in b[:3])]


@check
def test_aspp():
    for channels, launched in ((64, PROJECTED), (512, PROJECTED | SPLIT_IN)):
        x, branches, project = randn(1, channels, 13, 13), pyramid(channels), branch(128, 1, 1, 48)
        given = all_tensors(x, *branches, project)
        compare(lambda _, given=(x, branches, project): fastseg.aspp(*given), given, launched)


@check
def test_aspp_without_vectors_and_in_float32():
    x, branches = randn(1, 64, 13, 13, dtype=F32), pyramid(vectors=False)
    branches = [b._replace(weight=b.weight.float()) for b in branches]
    project = ASPPBranch(randn(40, 128, 1, 1, dtype=F32))
    given = all_tensors(x, *branches, project)
    compare(lambda _: fastseg.aspp(x, branches, project), given, PROJECTED)


@check
def test_aspp_whose_branches_differ_in_their_vectors():
    """A vector of ones is made at every call, and vectors are cast."""
    x, branches, project = randn(1, 64, 13, 13), pyramid(), branch(128, 1, 1, 48)
    branches[0] = branches[0]._replace(scale=None)
    branches[1] = branches[1]._replace(shift=branches[1].shift.float())
    fastseg.aspp(x, branches, project)
    driver.launches()
    fastseg.aspp(x, branches, project)
    launched = driver.launches()
    assert launched
    assert not any(one.by_triton for one in launched)


@check
def test_sum_of_branches():
    for channels, launched in ((64, ONE), (512, SPLIT_IN)):
        x, branches = randn(1, channels, 13, 13), pyramid(channels)
        branches = [b._replace(scale=None) for b in branches]
        given = all_tensors(x, *branches)
        run = functools.partial(fastseg.aspp, x, branches, activation=None)
        compare(lambda _, run=run: run(), given, launched)


@check
def test_branches_that_are_launched_one_by_one():
    """Of different widths, or summed with scales: each is a call of its own."""
    x, project = randn(1, 64, 13, 13), branch(104, 1, 1, 48)
    wide = [branch(64, 3, 4), branch(64, 3, 6, 72)]
    for run in (
        lambda: fastseg.aspp(x, wide, project),
        lambda: fastseg.aspp(x, pyramid(), activation=None),
    ):
        for _ in range(3):
            driver.launches()
            run()
        last = driver.launches()
        assert len(last) >= 3
        convolutions = [one for one in last if one.kernel == "atrous_conv2d_kernel"]
        assert convolutions
        assert not any(one.by_triton for one in convolutions)


@check
def test_aspp_with_pooling():
    for pool_first in (False, True):
        x, branches = randn(2, 64, 13, 13), pyramid()
        project, pool = branch(160, 1, 1, 48), branch(64, 1, 1)
        given = all_tensors(x, *branches, project, pool)
        options = {"pool": pool, "pool_first": pool_first}
        run = functools.partial(fastseg.aspp, x, branches, project, **options)
        compare(lambda _, run=run: run(), given, PROJECTED | {"mean_kernel", "vector_kernel"})


@check
def test_a_projection_whose_columns_are_copied():
    """What is copied is a view, which a later call does not have."""
    x, branches, pool = randn(1, 64, 13, 13), pyramid(), branch(64, 1, 1)
    strided = randn(160, 48).t()[..., None, None]
    project = ASPPBranch(strided, randn(48), randn(48))
    plain = ASPPBranch(strided[:, :128], *project[1:3])
    for run in (
        lambda: fastseg.aspp(x, branches, project, pool=pool),
        lambda: fastseg.aspp(x, branches, plain),
    ):
        prepared_calls.forget()
        for _ in range(2):
            driver.launches()
            run()
            assert all(one.by_triton for one in driver.launches())


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
def test_aspp_in_another_layout():
    x, branches = randn(1, 64, 13, 13, layout=torch.contiguous_format), pyramid()
    project, pool = branch(160, 1, 1, 48), branch(64, 1, 1)
    for _ in range(3):
        driver.launches()
        y = fastseg.aspp(x, branches, project, pool=pool)
        assert y.is_contiguous()
    assert not any(one.by_triton for one in driver.launches())


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


def main():
    results = {}
    for function in checks:
        if sys.argv[1:] and function.__name__ not in sys.argv[1:]:
            continue
        driver.launches()
        try:
            with torch.inference_mode(False):
                function()
            results[function.__name__] = None
        except BaseException:
            results[function.__name__] = traceback.format_exc()
    print(json.dumps(results))
