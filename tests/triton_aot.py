"""Triton kernels without a GPU: compiled ahead of time for several, and interpreted.

What neither can show is speed, and the interpreter not the accuracy of TF32. It computes 16-bit
values as float16 alone: its numpy has no bfloat16.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
ARCHS = (80, 90, 100)
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""What a block may have of each architecture's shared memory."""

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Triton's names of the dtypes."""

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=TOOLS)
each_arch = pytest.mark.parametrize("arch", ARCHS)


def compile_kernel(
    kernel,
    arch: int,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    options: Mapping[str, object],
    aligned: Sequence[str] = (),
):
    """A kernel as its launcher would have it compiled for a GPU of that architecture.

    Args:
        kernel: a function under triton.jit.
        arch: 10 times the compute capability.
        signature: the type of every argument that is none of the constants; "*fp16" is a pointer.
        constants: the values of the tl.constexpr.
        options: num_warps, num_stages and others.
        aligned: integers that are multiples of 16, which Triton sees at a launch; pointers are.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    types = {n: "constexpr" if n in constants else signature[n] for n in names}
    multiples = [n for n in names if types[n][0] == "*" or n in aligned]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in multiples}
    values = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(kernel, types, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))


def resources(kernel) -> dict[str, int]:
    """REG, STACK and LOCAL of a compiled kernel, by ptxas's account."""
    if not CUOBJDUMP:
        pytest.skip("needs cuobjdump, of the CUDA toolkit or the triton package")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        text = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return {k: int(n) for k, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def matrix_products(kernel, arch: int) -> int:
    """Instructions of that architecture's matrix units."""
    instruction = {80: "mma.sync.aligned", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[arch]
    return kernel.asm["ptx"].count(instruction)


def run_interpreted(script: Path):
    """What a script prints as its last line, JSON, with Triton's interpreter.

    A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
    """
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
