"""Threads that work on each other's tasks (csrc/cpu/threads): what is taken over from whom."""

import subprocess
from pathlib import Path

import pytest

from tests.native_build import alone, folder_for, run

SOURCE = Path(__file__).with_name("crew.cpp")
CSRC = Path(__file__).parents[2] / "csrc"
FLAGS = ["-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-pthread"]


def sanitized(sanitizer: str) -> Path:
    """The program of crew.cpp, or a skip where the compiler cannot build it."""
    flags = [*FLAGS, f"-fsanitize={sanitizer}"]
    folder = folder_for("crew", flags, [SOURCE, *CSRC.glob("cpu/threads/*.*")])
    program = folder / "crew"
    with alone(folder):
        if not program.exists():
            files = [SOURCE, CSRC / "cpu/threads/crew.cpp"]
            try:
                run(["g++", *flags, f"-I{CSRC}", *files, "-o", program])
            except FileNotFoundError:
                pytest.skip("there is no g++")
    return program


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_crew(sanitizer):
    done = subprocess.run([sanitized(sanitizer)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
