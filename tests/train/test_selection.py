"""OHEM's pixels: the one of a number in order, and the hardest of two processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from fastseg.train.selection import number_of_all, raised_threshold
from tests.process_groups import torchrun

ROOT = Path(__file__).resolve().parents[2]


def test_the_number_in_order():
    values = torch.rand(3, 50, 7)
    values[0, :5] = torch.inf
    values[1, 3] = 0
    values[2] = values[1]  # equal ones
    values[0, 9] = 1e-40  # denormal
    ordered = values.flatten().sort().values
    for k in (0, 1, 6, 7, 8, 333, 700, 1014, 1049):
        assert number_of_all(values, k) == ordered[k].item()


@pytest.mark.parametrize(("least", "expected"), [(0, 0.7), (2, 0.7), (3, 0.8), (99, 0.9)])
def test_the_threshold_rises_until_enough_count(least, expected):
    p = torch.tensor([0.1, 0.8, torch.inf, 0.5, 0.6, 0.9]).view(1, 2, 3)
    found = raised_threshold(p, p.isfinite(), 0.7, least)
    assert found == pytest.approx(expected)


def test_no_pixel_counts():
    p = torch.full((1, 2, 3), torch.inf)
    assert raised_threshold(p, p.isfinite(), 0.7, 5) == 0.7


def test_two_processes_choose_as_one(port):
    done = subprocess.run(
        torchrun("tests.train.ohem_of_all"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
