"""Prepared calls: what they are kept by, and what they launch.

A stand-in for the CUDA driver writes launches down (benchmarks.driver_stand_in), so that what a
prepared call launches is compared with what Triton's own launcher does. No kernel runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastseg._core import prepared_calls

ROOT = Path(__file__).parents[2]
RECORDED = sorted((ROOT / "tests/conv/recorded_calls").glob("*.py"))
CHECKS = [
    check
    for file in RECORDED
    for check in re.findall(r"^@check\ndef (\w+)", file.read_text(), re.MULTILINE)
]
PROGRAM = """
from benchmarks import driver_stand_in
driver_stand_in.install()
from tests.conv.recorded_calls import run
run.main()
"""

needs_launcher = pytest.mark.skipif(
    prepared_calls.launcher is None, reason="the compiled library was not built"
)
needs_stand_in = pytest.mark.skipif(
    torch.version.cuda is not None or shutil.which("gcc") is None,
    reason="needs gcc, and a torch without CUDA in whose place a stand-in comes",
)


@pytest.fixture(scope="module")
def recorded():
    """What each check of the program raised, or None."""
    pytest.importorskip("triton")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_launcher
@needs_stand_in
@pytest.mark.parametrize("check", CHECKS)
def test_recorded(recorded, check):
    assert recorded[check] is None, recorded[check]


@needs_launcher
def test_every_part_of_a_description_counts():
    describe = prepared_calls.launcher.describe
    t = torch.zeros(2, 3, 4, 5)
    others = [
        (t[:1],),
        (t.half(),),
        (t.int(),),
        (t.bfloat16(),),
        (t.transpose(0, 1),),
        (t.contiguous(memory_format=torch.channels_last),),
        (t[0],),
        (torch.zeros(2 * 3 * 4 * 5 + 1)[1:].view(2, 3, 4, 5),),
        (None,),
        (t, None),
        (None, t),
        (t, t),
        (),
    ]
    found = [describe(*given) for given in [(t,), *others]]
    assert None not in found
    assert len(set(found)) == len(found)
    assert describe(torch.ones(2, 3, 4, 5)) == found[0]
    assert describe(torch.nn.Parameter(t)) == found[0]


@needs_launcher
def test_what_is_no_plain_tensor_is_not_described():
    describe = prepared_calls.launcher.describe

    class Subclass(torch.Tensor):
        pass

    t = torch.zeros(2, 3)
    for other in (
        t.to_sparse(),
        t.as_subclass(Subclass),
        torch._neg_view(t),
        torch.nested.nested_tensor([t[0], t[1]]),
        torch.zeros(2, 3, device="meta"),
        torch.zeros(0, 3),  # which has no memory
        "a tensor",
        1.0,
        [t],
        torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ):
        assert describe(t, other) is None
    assert describe(*[t] * 1000) is None  # too many


@needs_launcher
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 999, ()), "too many values"),
        ((0, 1, ((1, (1, 1, 1), 32, 0, (0,) * 129, ()),)), "too many parameters"),
        ((0, 1, ((1, (1, 1, 1), 32, 0, (0,), ((1, 0, 0, True),)),)), "names no parameter"),
        ((0, 1, ((1, (1, 1, 1), 32, 0, (0,), ((0, 1, 0, True),)),)), "names no parameter"),
    ],
)
def test_kernels_that_cannot_be(arguments, message):
    """Without a driver there are none at all."""
    with pytest.raises((ValueError, RuntimeError), match=f"{message}|the driver cannot be used"):
        prepared_calls.launcher.Kernels(*arguments)


def compiled(**changes):
    """A kernel as Triton's launcher for CUDA launches it."""
    launcher = type("CudaLauncher", (), {"__module__": "triton.backends.nvidia.driver"})()
    metadata = {
        "num_ctas": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "profile_scratch_size": 0,
        "global_scratch_size": 128,
        "global_scratch_align": 128,
        "shared": 1024,
    }
    kernel = {"run": launcher, "function": 1, "packed_metadata": (4, 1, 1024)}
    kernel |= {name: changes.pop(name) for name in [*changes] if name in kernel}
    for name in [n for n in changes if n == "gsan_enabled"]:
        setattr(launcher, name, changes.pop(name))
    return SimpleNamespace(metadata=SimpleNamespace(**metadata | changes), **kernel)


@pytest.mark.parametrize(
    "change",
    [
        {"num_ctas": 2},
        {"launch_cooperative_grid": True},
        {"launch_pdl": True},
        {"profile_scratch_size": 8},
        {"global_scratch_align": 1024},
        {"shared": 300 << 10},
        {"warp_size": 64},
        {"gsan_enabled": True},
        {"run": None},
        {"function": None},
        {"packed_metadata": (4, 1, 1024, 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_launches_that_are_more_than_a_launch_are_left_to_triton(change):
    pytest.importorskip("triton")
    from fastseg.kernels.conv import recording

    recording.check(compiled())
    with pytest.raises(recording.Unknown):
        recording.check(compiled(**change))


def test_parameters_of_a_compiled_kernel():
    pytest.importorskip("triton")
    from fastseg.kernels.conv import recording

    ptx = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1,
	.param .f32 kernel_param_2
)
.reqntid 128
{ .param .b32 other; }
"""
    assert recording.parameters_in(ptx) == [".u64", ".u32", ".f32"]
    with pytest.raises(recording.Unknown):
        recording.parameters_in(ptx + ptx)


@pytest.fixture
def few_calls(monkeypatch):
    """A cache of its own, of three calls, whose tensors may be anything."""
    monkeypatch.setattr(prepared_calls, "MOST_PREPARED", 3)
    monkeypatch.setattr(prepared_calls, "CALLS", {})
    monkeypatch.setattr(
        prepared_calls, "launcher", SimpleNamespace(describe=lambda *tensors: repr(tensors))
    )


def call_of(*sizes):
    """A prepared call with plans of so many integers."""
    plans = [SimpleNamespace(buffer=torch.zeros(n, dtype=torch.int32)) for n in sizes]
    return SimpleNamespace(plans=plans)


@pytest.mark.usefixtures("few_calls")
def test_cache_is_emptied_where_it_is_full():
    calls = [call_of() for _ in range(5)]
    for i, call in enumerate(calls):
        prepared_calls.keep("op", (i,), (), call)
    assert len(prepared_calls.CALLS) == 2
    assert prepared_calls.find("op", (4,), ()) is calls[4]
    assert prepared_calls.find("op", (4,), ([],)) is None
    assert prepared_calls.find("op", (1,), ()) is None


@pytest.mark.usefixtures("few_calls")
def test_calls_do_not_hold_much_of_a_gpu_s_memory(monkeypatch):
    """Plans of many large maps would fill it; one that two calls share counts once."""
    monkeypatch.setattr(prepared_calls, "MOST_BYTES", 400)
    first, second, third, large = call_of(40), call_of(60), call_of(1), call_of(101)
    prepared_calls.keep("op", (1,), (), first)
    prepared_calls.keep("op", (2,), (), second)
    prepared_calls.keep_as_well("op", (2,), (2,), ())
    assert len(prepared_calls.CALLS) == 3
    prepared_calls.keep("op", (3,), (), third)
    assert list(prepared_calls.CALLS.values()) == [third]
    prepared_calls.keep("op", (4,), (), large)
    assert not prepared_calls.CALLS
