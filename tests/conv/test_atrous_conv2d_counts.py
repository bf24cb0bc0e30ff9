"""What the dense atrous convolution's kernels do is what their plan says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.triton_aot import run_interpreted

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.fixture(scope="module")
def counts() -> list[dict[str, int]]:
    return run_interpreted(Path(__file__).parent / "atrous_conv2d_counted.py")


def test_products_are_the_plans(counts):
    for case in counts:
        assert case["dot_flops"] == case["planned_flops"]


def test_taps_in_padding_are_not_multiplied(counts):
    """At a rate of 9 on a map of 12 x 10 half of the products fall into padding."""
    assert counts[-1]["dot_flops"] < 0.55 * counts[-1]["dense_flops"]


def test_bytes(counts):
    """Each tile's outputs once, as no tile is split here; operands no more than tiles hold."""
    for case in counts:
        assert case["slots"] == 0
        assert case["store_bytes"] == case["tile_bytes"]
        tables = case["operand_bytes"] // 8  # items, pixels and taps of the plan
        assert case["load_bytes"] <= case["operand_bytes"] + tables
