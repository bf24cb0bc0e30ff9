"""The checks that interpreted Triton kernels stay within their tensors and their integers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
from tests.triton_aot import run_interpreted


@pytest.fixture(scope="module")
def all_refusals():
    return run_interpreted(Path(__file__).parent / "triton_strays_interpreted.py")


def test_what_leaves_its_integers_is_refused(all_refusals):
    for operation, (within, beyond) in all_refusals["int32"].items():
        assert within == "", operation
        assert f"int32 overflow in {operation}" in beyond


def test_what_leaves_its_tensors_is_refused(all_refusals):
    refusals = {what: said for what, said in all_refusals.items() if what != "int32"}
    for what in ("inside", "masked", "a view of the half"):
        assert refusals.pop(what) == "", what
    strays = {"behind the end": 1, "before the start": 1, "stored": 3, "empty": 16}
    for what, elements in strays.items():
        accesses = "a store" if what == "stored" else "a load"
        assert f"{accesses} outside" in refusals[what]
        assert f": {elements} of 16 elements" in refusals[what]
    assert refusals.keys() == strays.keys()
