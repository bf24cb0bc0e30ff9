"""Which form computes a dense convolution on a GPU: the one that the model says is the fastest."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.gpu_model import convolution as model
from fastseg.kernels import common
from fastseg.kernels.conv import choice, configs, cost, few_outputs, rates
from fastseg.kernels.conv import launch as launches

CACHES = (launches.estimate, few_outputs.estimate, choice.times)


@pytest.fixture(autouse=True)
def _h200(monkeypatch):
    """Launches are planned for an H200; what was planned for no GPU is not taken for it."""
    monkeypatch.setattr(common, "NO_GPU", model.GPUS["H200"])
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


ASPP33 = (2048, 33, 33), 256, model.ATROUS


@pytest.mark.parametrize("batch", [1, 8, 16])
def test_aspp_is_ours(batch):
    (c, *size), *rest = ASPP33
    of = model.launch((batch, c, *size), *rest)
    assert choice.choose_form(of, True) == choice.LIVE_TAPS


@pytest.mark.parametrize(
    ("shape", "outputs", "rate"),
    [((8, 256, 33, 33), 256, 2), ((8, 2048, 33, 33), 256, 1), ((1, 64, 128, 256), 64, 2)],
    ids=str,
)
def test_small_rates_are_torch_s(shape, outputs, rate):
    """Rate 2 on 33 x 33 multiplies 94 % of what a dense convolution does, and is no gain."""
    of = model.launch(shape, outputs, [(3, rate)])
    assert choice.choose_form(of, False) == choice.TORCH


def test_few_outputs_are_one_product():
    """DeepLab v2's head."""
    of = model.launch((8, 2048, 41, 41), 21, [(3, r) for r in (6, 12, 18, 24)], summed=True)
    times = choice.times(of, True)
    assert choice.choose_form(of, True) == choice.FEW_OUTPUTS
    assert times[choice.FEW_OUTPUTS] < 0.6 * times[choice.LIVE_TAPS]
    assert times[choice.FEW_OUTPUTS] < 0.7 * times[choice.TORCH]


def test_weights_of_a_sum_are_joined():
    """DeepLab v2 on VGG: a block of 192 x 256 sums is worth a copy of the weights."""
    of = model.launch((8, 512, 41, 41), 1024, [(3, r) for r in (6, 12, 18, 24)], summed=True)
    times = choice.times(of, True)
    assert choice.choose_form(of, True) == choice.JOINED
    assert times[choice.JOINED] < 0.7 * times[choice.LIVE_TAPS]
    assert choice.join_weights(torch.empty(5, 3, 3, 3), torch.empty(5, 3, 1, 1)).shape == (
        *(5, 3, 10),
        1,
    )


def test_no_case_of_the_benchmark_loses_to_cudnn():
    """At three quarters of a large product's speed, were its tiles always full."""
    cases = list(model.of_the_benchmark())
    assert len(cases) == 13
    for name, of in cases:
        times = choice.times(of, True)
        form = choice.choose_form(of, True)
        assert times[form] <= times[choice.TORCH], name
        assert form == choice.TORCH or times[form] < model.full_cudnn(of), name


@pytest.mark.parametrize(
    ("shape", "branches", "most"),
    [
        ((1, 2048, 33, 33), model.ATROUS, 2.1),
        ((8, 2048, 33, 33), model.ATROUS, 1.3),
        ((16, 2048, 33, 33), model.ATROUS, 1.22),
        ((8, 2048, 65, 65), ((1, 1), (3, 12), (3, 24), (3, 36)), 1.2),
    ],
    ids=str,
)
def test_how_far_an_aspp_is_from_its_floor(shape, branches, most):
    """Its live products at a large product's speed."""
    of = model.launch(shape, 256, branches)
    assert choice.times(of, True)[choice.LIVE_TAPS] < most * model.floor(of)


def test_cudnn_s_time_is_no_less_than_its_products_or_its_bytes():
    for _, of in (*model.of_the_benchmark(), *model.hard()):
        for branch in of.branches:
            one = of._replace(branches=(branch,), summed=False)
            time = cost.cudnn_time(
                of.sizes, branch, of.channels, of.outputs, of.precision, of.device
            )
            assert time >= model.full_cudnn(one)


def test_cudnn_fills_up_tiles():
    assert cost.cudnn_efficiency(128 * 132, 256, 132) == 1.0
    assert cost.cudnn_efficiency(128 * 132, 21, 132) == pytest.approx(21 / 32)
    assert cost.cudnn_efficiency(128 * 132 + 1, 256, 132) < 1.0


def test_margin(monkeypatch):
    of = model.launch((8, 256, 33, 33), 256, [(3, 2)])
    monkeypatch.setattr(choice, "MARGIN", float("inf"))
    assert choice.choose_form(of, False) == choice.LIVE_TAPS
    monkeypatch.setattr(choice, "MARGIN", 0.0)
    assert choice.choose_form(model.launch((8, *ASPP33[0]), *ASPP33[1:]), True) == choice.TORCH


def test_what_is_tuned_runs(monkeypatch):
    of = model.launch((8, 256, 33, 33), 256, [(3, 2)])
    monkeypatch.setitem(configs.tuned, of, configs.TABLE["forward", "sm_90", "16"][0])
    assert choice.choose_form(of, False) == choice.LIVE_TAPS
    of = model.launch((8, 2048, 41, 41), 21, [(3, 6), (3, 12)], summed=True)
    config = configs.TABLE["forward", "sm_90", "16"][-1]
    monkeypatch.setitem(configs.tuned, choice.joined(of), config)
    assert choice.choose_form(of, False) == choice.JOINED


def test_few_outputs_are_possible_for_one_output_of_stride_1():
    sums, side_by_side = (
        model.launch((2, 64, 9, 9), 21, [(3, 2), (3, 4)], summed=summed) for summed in (True, False)
    )
    assert few_outputs.is_possible(sums)
    assert not few_outputs.is_possible(side_by_side)
    one = model.launch((2, 64, 9, 9), 21, [(3, 2)])
    strided = one.branches[0]._replace(stride=(2, 2))
    assert few_outputs.is_possible(one)
    assert not few_outputs.is_possible(one._replace(branches=(strided,)))
    assert not few_outputs.is_possible(one._replace(transposed=True))
    assert not few_outputs.is_possible(one._replace(outputs=few_outputs.MOST_OUTPUTS + 1))


def test_a_calibrated_row_comes_first(monkeypatch):
    device = torch.device("cpu")
    assert rates.rates_of(device) == rates.ESTIMATED["H200"]
    measured = rates.ESTIMATED["H200"]._replace(product=1.0)
    monkeypatch.setitem(rates.CALIBRATED, common.NO_GPU.name, measured)
    assert rates.rates_of(device) == measured


@pytest.mark.parametrize(
    ("device", "row"),
    [
        (common.Device("sm_90", 114, "NVIDIA H100 PCIe"), "H100"),
        (common.Device("sm_80", 84, "NVIDIA A10"), "A100"),
        (common.Device("sm_100", 160, "NVIDIA GB300"), "B200"),
        (common.Device("sm_80", 8), "A100"),
    ],
    ids=str,
)
def test_the_row_of_a_device(device, row, monkeypatch):
    monkeypatch.setattr(common, "NO_GPU", device)
    assert rates.rates_of(torch.device("cpu")) == rates.ESTIMATED[row]
