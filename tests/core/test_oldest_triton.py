"""The Triton kernels with the oldest Triton that fastseg supports, torch 2.11's.

`make test` installs it beside the newest, which all other tests have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conv.test_prepared_calls import PROGRAM, needs_launcher, needs_stand_in

ROOT = Path(__file__).resolve().parents[2]
OLDEST = Path(sys.prefix) / "oldest-triton"
VERSION = "3.6"

pytestmark = pytest.mark.skipif(
    not (OLDEST / "triton").exists(),
    reason=f"needs Triton {VERSION}: pip install --no-deps --target {OLDEST} triton=={VERSION}.0",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with that Triton, from the project's root."""
    environment = os.environ | {"PYTHONPATH": f"{OLDEST}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=900,
    )


def test_it_is_the_oldest():
    assert run("-c", "import triton; print(triton.__version__)").stdout.startswith(f"{VERSION}.")


@needs_launcher
@needs_stand_in
def test_convolutions_are_launched():
    """Every kind of call of the convolutions, with and without each operand."""
    done = run("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) > 30
    assert {name: said for name, said in errors.items() if said is not None} == {}


@pytest.mark.parametrize("family", ["conv", "crf"])
def test_kernels_fit_hopper(family):
    """Budgets of registers and shared memory on sm_90; how many instructions differs."""
    files = sorted(map(str, (ROOT / "tests" / family).glob("test_*_triton.py")))
    only = "90 and not (100 or instructions or issues)"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", only, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10
    assert "skipped" not in done.stdout
