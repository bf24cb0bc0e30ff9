import re

import pytest

from fastseg.cli import bench, main, timing


@pytest.fixture(autouse=True)
def few_runs(monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)


@pytest.mark.parametrize("ops", [(), *((name,) for name in bench.CASES)])
def test_ops_are_timed_beside_torch(ops, capsys):
    assert main(["bench", *ops, "--scale", "0.1"]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+):", out, re.M) == list(ops or bench.CASES)
    for row in ("torch", "fastseg"):
        assert len(re.findall(rf"^  {row} +[\d.]+ ms +[\d.]+x$", out, re.M)) == len(
            ops or bench.CASES
        )
    assert len(re.findall(r"^  torch .* 1\.00x$", out, re.M)) == len(ops or bench.CASES)


@pytest.mark.parametrize(
    ("op", "fault"),
    [
        ("atrous_conv2d", lambda y: y + 0.01),
        ("max_pool2d", lambda y: (y[0] + 0.01, y[1])),
        ("upsample_argmax", lambda y: y + 1),
    ],
)
def test_an_op_with_other_outputs_is_not_timed(op, fault, monkeypatch, capsys):
    right = getattr(bench, op)
    monkeypatch.setattr(bench, op, lambda *args, **kwargs: fault(right(*args, **kwargs)))
    assert main(["bench", "--scale", "0.1"]) == 1
    out = capsys.readouterr().out
    assert out.count("has other outputs") == 1
    assert out.count("  fastseg ") == len(bench.CASES) - 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "there is no case of 'nonsense'; there are atrous_conv2d"),
        ("--scale 0", "--scale 0.0: more than 0"),
        ("--scale nan", "--scale nan: more than 0"),
        ("--device nonsense", "--device nonsense: not a device"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(line, said, capsys):
    assert main(["bench", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastseg: {said}")
    assert err.count("\n") == 1
