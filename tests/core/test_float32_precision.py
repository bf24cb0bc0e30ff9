"""What torch's settings of float32's precision mean here, set by old and new names in any order."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg._core.float32_precision import reduced_on_cpu, tf32_in_convolutions, tf32_in_products
from fastseg.ops.conv.cpu_costs import COSTS
from fastseg.ops.conv.cpu_onednn import has_onednn

backends = torch.backends
set_precision = torch._C._set_fp32_precision_setter


@pytest.fixture(autouse=True)
def _restored():
    """Values of torch's defaults after each test."""
    yield
    for backend in ("generic", "mkldnn", "cuda"):
        set_precision(backend, "all", "none")
    backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")
    for part in (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul):
        part.fp32_precision = "none"
    set_precision("cuda", "conv", "tf32")
    assert torch.get_float32_matmul_precision() == "highest"


def setter(part, name: str, value):
    def set_it():
        setattr(part, name, value)

    return set_it


SETTERS = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "cuda.matmul.allow_tf32": setter(backends.cuda.matmul, "allow_tf32", True),
    "not cudnn.allow_tf32": setter(backends.cudnn, "allow_tf32", False),
    "all tf32": setter(backends, "fp32_precision", "tf32"),
    "all ieee": setter(backends, "fp32_precision", "ieee"),
    "mkldnn.matmul tf32": setter(backends.mkldnn.matmul, "fp32_precision", "tf32"),
    "mkldnn.matmul bf16": setter(backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "mkldnn.conv tf32": setter(backends.mkldnn.conv, "fp32_precision", "tf32"),
    "mkldnn.conv ieee": setter(backends.mkldnn.conv, "fp32_precision", "ieee"),
    "cuda.matmul tf32": setter(backends.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn.conv ieee": setter(backends.cudnn.conv, "fp32_precision", "ieee"),
    "cudnn ieee": setter(backends.cudnn, "fp32_precision", "ieee"),
}

# Settings, one after the other, and whether digits are given up then: by convolutions on the CPU,
# by those on GPUs, by matrix products on GPUs.
MEANINGS = {
    (): (False, True, False),
    ("high",): (True, True, True),
    ("medium",): (True, True, True),
    ("high", "highest"): (False, True, False),
    ("cuda.matmul.allow_tf32",): (False, True, True),
    ("not cudnn.allow_tf32",): (False, False, False),
    ("all tf32",): (True, True, True),
    ("all ieee",): (False, False, False),
    ("all tf32", "all ieee"): (False, False, False),
    ("mkldnn.matmul tf32",): (True, True, False),
    ("mkldnn.matmul bf16",): (True, True, False),
    ("mkldnn.conv tf32",): (True, True, False),
    ("mkldnn.conv ieee", "high"): (False, True, True),
    ("high", "mkldnn.conv ieee"): (False, True, True),
    ("all tf32", "mkldnn.conv ieee"): (False, True, True),
    ("cuda.matmul tf32",): (False, True, True),
    ("cudnn.conv ieee", "cuda.matmul tf32"): (False, False, True),
    ("cudnn ieee",): (False, False, False),
    ("cudnn ieee", "high"): (True, False, True),
    ("not cudnn.allow_tf32", "all tf32"): (True, True, True),
}


def print_meanings() -> None:
    """What each of MEANINGS gives, in a process of its own: no setter restores torch's defaults."""
    for names in MEANINGS:
        child = os.fork()
        if child == 0:
            for name in names:
                SETTERS[name]()
            meant = reduced_on_cpu(), tf32_in_convolutions(), tf32_in_products()
            print(names, meant, flush=True)
            os._exit(0)
        os.waitpid(child, 0)


def test_meanings():
    code = "import test_float32_precision; test_float32_precision.print_meanings()"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [f"{names} {meant}" for names, meant in MEANINGS.items()]
    assert printed.splitlines() == expected


@pytest.mark.parametrize("first", SETTERS)
def test_convolutions_under_every_pair_of_settings(first):
    """They run, and have float32's accuracy but where it was given up; calls in between too."""
    if not COSTS.get(fastseg._core.extension.simd_level()):
        pytest.skip("torch's own kernels run at this level")
    x, weight = torch.randn(1, 32, 24, 24), torch.randn(32, 32, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    for second in SETTERS:
        for name in (first, second):
            SETTERS[name]()
            error = (fastseg.atrous_conv2d(x, weight) - exact).abs().max() / exact.abs().max()
            assert (error > 2e-6) == reduced_on_cpu(), f"{first}, {second}: {error:.1e}"


def test_gradients_and_aspp_under_mixed_settings():
    x = torch.randn(1, 32, 17, 17, requires_grad=True)
    branch = fastseg.ASPPBranch(torch.randn(8, 32, 3, 3, requires_grad=True), dilation=6)
    for names in itertools.permutations(("high", "all tf32", "all ieee"), 3):
        for name in names:
            SETTERS[name]()
            y = fastseg.aspp(x, [branch, branch._replace(dilation=3)], activation=None)
            y.sum().backward()
            with torch.no_grad():
                again = fastseg.aspp(x, [branch, branch._replace(dilation=3)], activation=None)
            torch.testing.assert_close(again, y, rtol=1e-3, atol=1e-2)


def test_onednn_can_be_turned_off():
    """torch.backends.mkldnn.flags: then no kernel of oneDNN runs."""
    x, weight = torch.randn(1, 8, 40, 40), torch.randn(64, 8, 1, 1)
    y = fastseg.atrous_conv2d(x, weight)
    with backends.mkldnn.flags(enabled=False):
        assert not has_onednn()
        torch.testing.assert_close(fastseg.atrous_conv2d(x, weight), y, rtol=1e-4, atol=1e-4)
