"""The Triton kernels, in the interpreter, on tensors of all kinds of strides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_every_tensor_of_every_kernel():
    program = Path(__file__).parent / "memory_layouts_interpreted.py"
    done = subprocess.run(
        [sys.executable, program],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) > 100
    assert {name: e for name, e in errors.items() if e > 1e-5} == {}
