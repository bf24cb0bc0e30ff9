import pytest
import torch
from torch import nn

from fastseg.cli.compare import Measurement, compare, peak_bytes, table


def test_peak_bytes_counts_what_is_alive_at_once():
    x = torch.zeros(1 << 20)  # 4 MiB

    def two_then_one():
        first = x + 1
        second = first + 1
        del first
        return second + 1  # beside second only

    assert peak_bytes(two_then_one, x) == pytest.approx(8 << 20, abs=64)  # and the scalars
    assert peak_bytes(lambda: x.add_(1), x) < 64


def test_compare_gives_each_backend_its_output():
    x = torch.randn(2, 3, 4, 4)
    first, second = compare({"a": nn.Identity(), "b": nn.Flatten()}, x, rounds=2)
    assert (first.backend, second.backend) == ("a", "b")
    assert torch.equal(first.output, x)
    assert torch.equal(second.output, x.flatten(1))
    assert first.seconds > 0


def test_table():
    logits = torch.zeros(1, 2, 1, 4)
    other = logits.clone()
    other[0, 1, 0, 0] = 0.5
    lines = table(
        [
            Measurement("fastseg", 0.010, 1 << 20, logits),
            Measurement("torch", 0.025, 3 << 20, other),
        ]
    ).splitlines()
    assert lines[1].split() == ["fastseg", "10.0", "ms", "1.0", "MiB"]
    assert "2.50x the time, 3.00x the memory" in lines[2]
    assert "differ by at most 5.0e-01; 75.00% of the pixels" in lines[3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_peak_bytes_on_a_gpu():
    x = torch.zeros(1 << 20, device="cuda")
    assert peak_bytes(lambda: x + 1, x) == 4 << 20
