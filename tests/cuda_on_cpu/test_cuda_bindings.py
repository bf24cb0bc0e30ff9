"""Each CUDA binding by itself: the shim compiles all as one source, a build for a GPU does not."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu.build import CSRC, cuda_home, flags
from tests.native_build import run

pytestmark = pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here")


@pytest.mark.parametrize(
    "source", sorted((CSRC / "cuda").rglob("*.cpp")), ids=lambda path: path.stem
)
def test_a_binding_includes_what_it_uses(source):
    run(["g++", *flags(), "-fsyntax-only", source])
