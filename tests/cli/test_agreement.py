import math

import pytest
import torch

from fastseg.cli import timing
from fastseg.cli.agreement import MOST_TIES, ROUNDING, Agreement, agreement, tensors_of
from fastseg.cli.timing import Row, interleaved_medians, speedups, table


@pytest.mark.parametrize("dtype", [*ROUNDING, torch.complex64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_one_value_beyond_the_rounding_of_its_dtype(dtype, scale):
    a = (torch.linspace(-1, 1, 100, dtype=torch.float64) * scale).to(dtype)
    rounding = ROUNDING.get(dtype, ROUNDING[torch.float32])
    for share, within in ((0.4, True), (2.5, False)):
        b = a.clone()
        b[50] += share * rounding * scale
        found = agreement([a], [b])
        assert found.within() == within
        assert found.difference == pytest.approx(share * rounding * scale, rel=0.5)
        assert found.largest == pytest.approx(scale, rel=1e-2)
        assert f"{found.difference:.1e}, the largest output is {found.largest:.1e}" in str(found)


def test_every_tensor_counts_by_its_own_size():
    large, small = torch.full((4,), 1e6), torch.ones(4)
    assert agreement([large, small], [large + 1, small]).within()
    assert not agreement([large, small], [large, small + 1e-3]).within()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite(value):
    a = torch.tensor([1.0, value])
    assert agreement([a], [a.clone()]).within()
    for b in (torch.tensor([1.0, 1.0]), torch.tensor([value, value])):
        assert not agreement([a], [b]).within()
        assert agreement([a], [b]).difference == math.inf


def test_classes_may_differ_in_near_ties_alone():
    a = torch.zeros(10000, dtype=torch.int64)
    for count, within in ((0, True), (10, True), (11, False)):
        b = a.clone()
        b[:count] = 1
        found = agreement([a], [b])
        assert found.within() == within
        assert found.difference is None
        assert str(found) == f"{count / 100:.2f}% of the integers differ"


def test_near_ties_of_poolings_are_those_of_torch_at_most_twice():
    torchs = Agreement(off=0.01)
    assert Agreement(off=0.02).within(torchs)
    assert not Agreement(off=0.021).within(torchs)
    assert not Agreement(off=0.02).within(Agreement(off=0.0))
    assert not Agreement(off=MOST_TIES + 0.01).within(Agreement(off=1.0))
    assert not Agreement(other=MOST_TIES + 0.01).within(Agreement(other=1.0))


@pytest.mark.parametrize(
    "other",
    [[], [torch.ones(2), torch.ones(2)], [torch.ones(3)], [torch.ones(2, dtype=torch.int64)]],
)
def test_other_kinds_of_outputs(other):
    found = agreement([torch.ones(2)], other)
    assert not found.within()
    assert " in place of " in str(found)


def test_empty_outputs():
    assert str(agreement([torch.ones(0)], [torch.ones(0)])) == "are empty"


def test_tensors_of_nested_outputs():
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert tensors_of({"x": [a, None, (b, "text")], "y": c}) == [a, b, c]
    with pytest.raises(ValueError, match="the model's output has no tensors, it is a dict"):
        tensors_of({"x": None})


def test_runs_take_turns_after_one_that_does_not_count(monkeypatch):
    clock, order = [0.0], []

    def run(name, costs):
        order.append(name)
        clock[0] += costs[order.count(name) - 1]

    monkeypatch.setattr(timing, "MIN_ROUNDS", 3)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    costs = {"a": [90, 1, 90, 2, 90, 60], "b": [70, 5, 70, 4, 70, 3]}
    runs = {name: lambda name=name: run(name, costs[name]) for name in costs}
    assert interleaved_medians(runs, torch.device("cpu")) == {"a": 2, "b": 4}
    assert "".join(order) == "aabb" * 3


def test_table_of_times():
    rows = [Row("slow", 0.02), Row("fast", 0.01), Row("new", 0.004), Row("none", None, "is away")]
    assert speedups(rows, ("slow", "fast")) == {"slow": 0.5, "fast": 1.0, "new": 2.5}
    lines = table(rows, ("slow", "fast"), "the faster").splitlines()
    assert lines[0].split() == ["time", "speed", "beside", "the", "faster"]
    assert [line.split() for line in lines[2:]] == [
        ["fast", "10.00", "ms", "1.00x"],
        ["new", "4.00", "ms", "2.50x"],
        ["none", "-", "is", "away"],
    ]
