"""A part of each kernel's tests with every access to a tensor or to shared memory checked.

One order of threads is enough: threads that touch what they should not do so in any.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cuda_on_cpu.loader import SANITIZE
from tests.forked_programs import run_each

FOLDER = Path(__file__).parent
SELECTIONS = {
    "test_cuda_confusion_matrix.py": "tables or ignored or layouts or uint8 or upsampled",
    "test_cuda_depthwise.py": "torch.float16 or begin_anywhere",
    "test_cuda_distance.py": "not 000",
    "test_cuda_filter.py": "float32",
    "test_cuda_heads.py": "float16 or not float",
    # 16-bit vectors are the longest.
    "test_cuda_kernels.py": "not past_shared and not (float32 or float64 or bfloat16)",
    "test_cuda_lattice.py": "references and float32",
    "test_cuda_losses.py": "cross_entropy or sums or dtypes or layouts or special or empty",
    "test_cuda_mean_field.py": "sizes or labels or layouts",
    "test_cuda_refine.py": "float32",
}
"""What pytest's -k selects of a file, beside the order of threads."""
MISTAKE = "a mistake"

pytestmark = pytest.mark.skipif(SANITIZE, reason="this is the inner run")


@pytest.fixture(scope="module")
def runs():
    """How pytest has ended for each file, and for a kernel that reads past shared memory."""
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

    def program(file, selection):
        options = ["-sqx", "-p", "no:cacheprovider", "-k", f"forward and ({selection})"]
        return ["-m", "pytest", *options, str(FOLDER / file)]

    programs = {file: program(file, selection) for file, selection in SELECTIONS.items()}
    programs[MISTAKE] = program("test_cuda_kernels.py", "past_shared")
    return dict(zip(programs, run_each([*programs.values()], environment), strict=True))


@pytest.mark.parametrize("file", SELECTIONS)
def test_no_access_is_out_of_bounds(runs, file):
    assert runs[file].returncode == 0, runs[file].stdout + runs[file].stderr


def test_an_access_out_of_bounds_is_found(runs):
    assert runs[MISTAKE].returncode != 0
    assert "heap-buffer-overflow" in runs[MISTAKE].stderr + runs[MISTAKE].stdout


def test_every_file_of_kernels_is_checked():
    instruments = {f"test_cuda_{name}.py" for name in ("bindings", "races", "requests", "trace")}
    assert {path.name for path in FOLDER.glob("test_cuda_*.py")} == {*SELECTIONS} | instruments
