"""What the benchmarks of atrous convolution count and tune, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


@pytest.mark.parametrize(
    ("size", "shares"),  # percent, at rates 6, 12 and 18
    [((33, 33), (77.2, 57.4, 40.5)), ((41, 41), (81.4, 64.8, 50.0)), ((64, 128), (90.8, 82, 73.6))],
)
def test_shares_of_live_taps(size, shares):
    from benchmarks.atrous_cases import live_taps

    for rate, share in zip((6, 12, 18), shares, strict=True):
        assert 100 * live_taps(*size, 3, 1, rate) / (9 * size[0] * size[1]) == pytest.approx(
            share, abs=0.05
        )


def test_flops_leave_out_the_padding():
    from benchmarks.atrous_cases import aspp, flops_of

    pair = aspp((2, 4, 33, 33), (6,))
    live = sum(max(0, 33 - abs(d)) * max(0, 33 - abs(e)) for d in (-6, 0, 6) for e in (-6, 0, 6))
    pixels, channels = 33 * 33, 256
    products = 4 * channels * (pixels + live + 1) + 3 * channels * channels * pixels
    assert flops_of(pair.theirs, torch.randn(pair.shape)) == 2 * 2 * products


def test_the_command_line_of_the_gpu_benchmark():
    from benchmarks.atrous_conv2d_gpu import parse

    options = parse(["--dtype", "float32", "--only", "aspp", "--autotune", "--csv", "a.csv"])
    assert (options.dtype, options.only, options.autotune) == ("float32", "aspp", True)
    assert options.csv == Path("a.csv")
    assert parse([]).dtype == "bfloat16"


@pytest.fixture
def launched(monkeypatch):
    """The launches of atrous convolution's kernels, which are not run."""
    pytest.importorskip("triton")
    from fastseg.kernels.conv import aspp, atrous_conv2d

    launches = []

    def run(launch, x, weights, out, *_, **options):
        launches.append(launch)
        return out

    monkeypatch.setattr(aspp, "run", run)
    monkeypatch.setattr(aspp, "project", lambda z, *_: z)
    monkeypatch.setattr(atrous_conv2d, "run", run)
    return launches


def test_tuned_launches_are_those_that_ops_come_to(launched, monkeypatch):
    """Else what is tuned is never used."""
    from benchmarks import atrous_conv2d_autotune as tuning
    from fastseg.kernels.conv import aspp, atrous_conv2d

    def empty(shape, dtype):
        return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)

    monkeypatch.setattr(tuning, "gpu_randn", empty)
    problems = [p for p in tuning.problems() if p.shape[0] == 8 and p.shape[2] < 65]
    assert {(len(p.kernels_and_rates), p.summed, p.transposed) for p in problems} == {
        (4, False, False),
        (4, True, False),
        (1, False, False),
        (1, False, True),
    }
    for problem in problems:
        x, weights, out = problem.tensors(torch.bfloat16)
        rates = [rate for _, rate in problem.kernels_and_rates]
        if len(rates) > 1:
            nothing = [None] * len(rates)
            project = None if problem.summed else torch.empty(8, out.shape[1], 1, 1)
            aspp.aspp(x, weights, nothing, nothing, rates, project, None, None, None, "")
        else:
            geometry = ((1, 1), (rates[0],) * 2, (rates[0],) * 2, 1)
            if problem.transposed:
                atrous_conv2d.atrous_conv2d_input_grad(x, weights[0], out.shape[2:], *geometry)
            else:
                atrous_conv2d.atrous_conv2d(x, weights[0], *[None] * 4, *geometry, "")
        assert launched.pop() == problem.launch(x, weights)[0]
    assert not launched
