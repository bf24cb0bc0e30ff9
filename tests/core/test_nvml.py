"""What the management library tells of GPUs, and CUDA libraries that would fail on them."""

from __future__ import annotations

import ctypes

import pytest
import torch

from fastseg._core import extension, nvml
from fastseg._core.nvml import Failure, Hardware

T4 = Hardware((12, 4), ((7, 5),))
H200 = Hardware((13, 0), ((9, 0),))
BUILD = {"nvcc": "13.0", "cuda_archs": ["80", "90", "100a"]}


FUNCTIONS = (
    "nvmlInit_v2",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetCudaComputeCapability",
)
FIRST_HANDLE = 0x7F0000000000


class Library:
    """A management library of two GPUs; `failing` is a function that fails."""

    capabilities = ((8, 9), (7, 5))

    def __init__(self, failing=None):
        self.failing, self.open = failing, 0

    def __getattr__(self, name):
        assert name in (*FUNCTIONS, "nvmlShutdown")
        return lambda *arguments: self.call(name, *[getattr(a, "_obj", a) for a in arguments])

    def call(self, name, *arguments):
        if name == self.failing:
            return 999
        if name == "nvmlInit_v2":
            self.open += 1
        elif name == "nvmlShutdown":
            self.open -= 1
        elif name == "nvmlSystemGetCudaDriverVersion_v2":
            arguments[0].value = 12080
        elif name == "nvmlDeviceGetCount_v2":
            arguments[0].value = len(self.capabilities)
        elif name == "nvmlDeviceGetHandleByIndex_v2":
            arguments[1].value = FIRST_HANDLE + arguments[0].value
        else:
            device, major, minor = arguments
            major.value, minor.value = self.capabilities[device.value - FIRST_HANDLE]
        return 0


def test_a_machine_with_gpus():
    library = Library()
    assert nvml.read(library) == Hardware((12, 8), Library.capabilities)
    assert library.open == 0


@pytest.mark.parametrize("failing", FUNCTIONS)
def test_a_function_that_fails(failing, monkeypatch):
    library = Library(failing)
    with pytest.raises(Failure, match="999"):
        nvml.read(library)
    assert library.open == 0
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert nvml.hardware() is None


def test_no_library_or_an_older_one(monkeypatch):
    def missing(name):
        raise OSError(name)

    for load in (missing, lambda name: object()):
        monkeypatch.setattr(ctypes, "CDLL", load)
        assert nvml.hardware() is None


@pytest.mark.parametrize(
    ("build", "hardware", "reason"),
    [
        (BUILD, H200, None),
        (BUILD, None, None),
        (BUILD, Hardware((13, 2), ()), None),  # no GPU now
        (BUILD, Hardware((14, 0), ((12, 0),)), None),
        (BUILD, Hardware((13, 0), ((7, 5), (8, 0))), None),  # one of them fits
        (BUILD, Hardware((13, 0), ((7, 5),)), "for sm_80 and later, and the GPU is sm_75"),
        (BUILD, T4, "was built by CUDA 13.0, and the driver is for CUDA 12.4"),
        (BUILD | {"nvcc": "12.8"}, T4, "for sm_80 and later, and the GPU is sm_75"),
        (BUILD | {"nvcc": "12.8"}, Hardware((12, 4), ((8, 6),)), None),
        ({"nvcc": "12.4", "cuda_archs": ["75"]}, T4, None),
        ({"nvcc": "13.0", "cuda_archs": ["90"]}, Hardware((13, 0), ((8, 0),)), "for sm_90 and"),
        ({}, T4, "for sm_80 and later, and the GPU is sm_75"),  # the note of the build is lost
        ({"nvcc": None, "cuda_archs": []}, H200, None),
        ({"nvcc": "unknown", "cuda_archs": "unknown"}, H200, None),
    ],
)
def test_a_cuda_library_that_would_fail(build, hardware, reason):
    found = extension.misfit(build, hardware)
    assert (found is None) if reason is None else (reason in found), found


def test_it_is_not_loaded(tmp_path, monkeypatch):
    """Ops then run as plain PyTorch, where each would end with an error of CUDA's."""
    (tmp_path / "_C_cuda.so").touch()
    monkeypatch.setattr(extension, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(nvml, "hardware", lambda: T4)
    assert extension._load_cuda() == (
        None,
        "_C_cuda.so is compiled for sm_80 and later, and the GPU is sm_75",
    )
    monkeypatch.setattr(nvml, "hardware", lambda: H200)
    assert extension._load_cuda() == (None, "_C_cuda.so is damaged: its end is missing")
