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

LEAST_SHARED = SHARED_BYTES | {80: 99 << 10}
"""The same where sm_80's kernels serve sm_86, sm_89 and sm_120, which have less."""

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
"""Triton's names of the dtypes."""

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=TOOLS)
each_arch = pytest.mark.parametrize("arch", ARCHS)


def compile_kernel(
    kernel,
    arch: int,
    signature: Mapping[str, object],
    constants: Mapping[str, object],
    options: Mapping[str, object],
    aligned: Sequence[str] = (),
):
    """A kernel as its launcher would have it compiled for a GPU of that architecture.

    Args:
        kernel: a function under triton.jit.
        arch: 10 times the compute capability.
        signature: the type of every argument that is none of the constants: "*fp16" is a pointer,
            None and 1 are constants at a launch too, a tuple holds the types of its elements.
        constants: the values of the tl.constexpr.
        options: num_warps, num_stages and others.
        aligned: integers, fields of tuples too, that are multiples of 16, which Triton sees at a
            launch; pointers are.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values, attributes = {}, {}

    def specialize(name, kind, path):
        if isinstance(kind, tuple):
            names = getattr(kind, "_fields", [name] * len(kind))
            parts = [
                specialize(part, one, (*path, i))
                for i, (part, one) in enumerate(zip(names, kind, strict=True))
            ]
            return type(kind)(*parts) if hasattr(kind, "_fields") else tuple(parts)
        if not isinstance(kind, str):
            values[path] = kind
            return "constexpr"
        if kind[0] == "*" or name in aligned:
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    types = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name], values[i,] = "constexpr", constants[name]
        else:
            types[name] = specialize(name, signature[name], (i,))
    source = ASTSource(kernel, types, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(options))


def integers(group, **kinds):
    """The types of a group of integers as a launch has them: i32, but for those of other kinds."""
    return group(**dict.fromkeys(group._fields, "i32") | kinds)


def resources(kernel) -> dict[str, int]:
    """REG, STACK and LOCAL of a compiled kernel, by ptxas's account."""
    text = dumped(kernel, "--dump-resource-usage")
    return {k: int(n) for k, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def dumped(kernel, option: str) -> str:
    """What cuobjdump prints of a compiled kernel."""
    if not CUOBJDUMP:
        pytest.skip("needs cuobjdump, of the CUDA toolkit or the triton package")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [CUOBJDUMP, option, cubin.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def matrix_products(kernel, arch: int) -> int:
    """Instructions of that architecture's matrix units."""
    instruction = {80: "mma.sync.aligned", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[arch]
    return kernel.asm["ptx"].count(instruction)


def run_interpreted(script: Path):
    """What a script prints as its last line, JSON, with Triton's interpreter, its accesses checked.

    A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
    """
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.triton_bounds", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
