"""The dense CRF's C++ under AddressSanitizer and UndefinedBehaviorSanitizer, on random problems.

More: ``python -c "from tests.crf.densecrf_fuzz import build; print(build.fuzzer())"`` builds the
program; it takes the first seed and how many.
"""

import os
import subprocess

import pytest

from tests.crf.densecrf_fuzz import build


@pytest.fixture(scope="module")
def fuzzer():
    if missing := build.sanitizers_missing():
        pytest.skip(missing)
    return build.fuzzer()


def test_random_problems(fuzzer):
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    environment.pop("FASTSEG_SIMD", None)
    done = subprocess.run(
        [fuzzer, "0", "200"], capture_output=True, text=True, timeout=300, env=environment
    )
    seeds = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {seeds[-1] if seeds else 'none'}\n{done.stderr[-5000:]}"
    assert seeds[-1].startswith("200 problems")
