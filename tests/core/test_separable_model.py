"""The model of separable convolutions in one launch and in two: its arithmetic, by hand."""

from __future__ import annotations

import pytest

from benchmarks.gpu_model.devices import H200
from benchmarks.gpu_model.separable import (
    PRODUCTS,
    SHAPES,
    Depthwise,
    Shape,
    fastest,
    product,
)

PLAIN = Depthwise(1.0, overlaps=False)


def test_few_blocks_take_the_time_of_their_products():
    shape = Shape("", 1024, 256, 16, 1)  # two tiles of 128 pixels on two multiprocessors
    cycles = 16 * 128 * 256 * 64 / PRODUCTS
    expected = H200.launch_seconds + cycles / H200.hertz
    assert product(shape, (128, 256), 1, None) == pytest.approx(expected)


def test_narrow_tiles_wait_for_the_second_level_cache():
    shape = Shape("", 1024, 256, 33 * 8, 1)
    blocks, steps = 33 * 66 * 4, 16
    moved = blocks * steps * 64 * 2 * (32 / 2 + 64)
    expected = H200.launch_seconds + moved / H200.l2_bandwidth
    assert product(shape, (32, 64), 1, None) == pytest.approx(expected)


def test_splits_write_their_sums_and_read_them_in_a_second_launch():
    shape = Shape("", 1024, 256, 16, 1)
    sums, out = 4 * 256 * 256 * 4, 256 * 256 * 2
    products = 4 * 128 * 256 * 64 / PRODUCTS / H200.hertz
    expected = 2 * H200.launch_seconds + products + (sums + out) / H200.l2_bandwidth
    assert product(shape, (128, 256), 4, None) == pytest.approx(expected)


def test_depthwise_values_are_computed_for_every_block_of_outputs():
    """Two blocks of outputs compute those of their pixels twice."""
    values, steps = 128 * 64, 32
    for outputs, blocks in ((256, 1), (512, 2)):
        shape = Shape("", 2048, outputs, 8 * 33, 12)  # 545 tiles of pixels
        rounds = -(-545 * blocks // H200.multiprocessors)
        cycles = values * (256 / PRODUCTS + 1.0 / 4)
        expected = H200.launch_seconds + rounds * steps * cycles / H200.hertz
        assert product(shape, (128, 256), 1, PLAIN) == pytest.approx(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.network} {s.size} rate {s.rate}")
def test_products_that_overlap_take_no_longer(shape):
    for instructions in (1.0, 2.0):
        overlapped, waiting = (fastest(shape, Depthwise(instructions, o)) for o in (True, False))
        assert H200.launch_seconds < overlapped <= waiting


def test_phases_lie_together():
    assert Shape("", 64, 64, 65, 12).halo(128) == 1.0
    assert Shape("", 64, 64, 65, 1).halo(64) == (10 / 8) ** 2
