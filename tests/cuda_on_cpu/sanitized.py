"""Runs tests in a process of their own, with every access to tensors and shared memory checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def assert_sanitized(order: str, file: str, selection: str) -> None:
    """Checks a part of a file's tests with all accesses to tensors and shared memory checked.

    Skips the calling test in all orders of threads but one.
    """
    if order != "forward":
        pytest.skip("threads that touch what they should not do so in any order")
    done = run_sanitized(file, selection)
    assert done.returncode == 0, done.stdout + done.stderr


def run_sanitized(file: str, selection: str) -> subprocess.CompletedProcess:
    """Runs the tests of a file that pytest's ``-k selection`` picks, under AddressSanitizer.

    Skips the calling test where the compiler comes without it.
    """
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in ("libasan.so", "libstdc++.so.6")  # the first looks for the second as it starts
    ]
    if not all(Path(path.strip()).is_absolute() for path in runtimes):
        pytest.skip("g++ comes without AddressSanitizer")
    environment = os.environ | {
        "FASTSEG_TEST_SANITIZE": "1",
        "LD_PRELOAD": " ".join(path.strip() for path in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:max_malloc_fill_size=4096",
    }
    command = [sys.executable, "-m", "pytest", "-sqx", "-p", "no:cacheprovider", file]
    return subprocess.run(
        [*command, "-k", selection], capture_output=True, text=True, env=environment
    )
