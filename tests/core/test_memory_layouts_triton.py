"""The Triton kernels, in the interpreter, on tensors of all kinds of strides."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("triton")
from tests.triton_aot import run_interpreted


def test_every_tensor_of_every_kernel():
    errors = run_interpreted(Path(__file__).parent / "memory_layouts_interpreted.py")
    assert len(errors) > 100
    assert {name: e for name, e in errors.items() if e > 1e-5} == {}
