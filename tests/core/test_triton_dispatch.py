"""Which GPUs take the Triton kernels."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from fastseg._core import library


@pytest.mark.parametrize(
    ("capability", "runs"), [((7, 5), "reference"), ((8, 0), "kernel"), ((12, 0), "kernel")]
)
def test_gpus_that_kernels_are_not_compiled_for_take_the_reference(capability, runs, monkeypatch):
    monkeypatch.setattr(library, "_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    run = library.on_device_of_first(lambda x, y: ("kernel", y), lambda x, y: ("reference", y))
    assert run(torch.zeros(1), 2) == (runs, 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_op_with_compiled_kernels_keeps_them(compiled, monkeypatch):
    registered = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: compiled)
    monkeypatch.setattr(library, "TRITON_NAMES", [])
    monkeypatch.setattr(
        library, "LIBRARY", SimpleNamespace(impl=lambda name, *_: registered.append(name))
    )
    library.define_triton("depthwise_conv2d", lambda *_: None)
    assert registered == library.TRITON_NAMES == ([] if compiled else ["depthwise_conv2d"])


@pytest.mark.parametrize(("capability", "named"), [((7, 5), "reference"), ((9, 0), "Triton")])
def test_the_report_says_which_runs(capability, named, monkeypatch):
    monkeypatch.setattr(library, "_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library, "TRITON_NAMES", ["aspp"])
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: True)
    assert library.backend("aspp", "cuda") == named
    assert library.backend("max_pool2d", "cuda") == "CUDA C++"
