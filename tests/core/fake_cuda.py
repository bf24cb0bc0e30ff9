"""A CUDA device that is the CPU: code that names the device "cuda" runs, and events take time."""

from __future__ import annotations

import contextlib
import time

import torch
from torch.overrides import TorchFunctionMode


class Event:
    """An event with the host's time."""

    def __init__(self, enable_timing: bool = False):
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class Graph:
    """A graph that captures nothing."""

    def replay(self) -> None:
        pass


class OnTheCPU(TorchFunctionMode):
    """Takes the CPU wherever a function is given the device "cuda"."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == torch.Tensor.cuda:
            return args[0]
        args = [_cpu(a) for a in args]
        return function(*args, **{name: _cpu(a) for name, a in (kwargs or {}).items()})


def _cpu(argument: object) -> object:
    is_cuda = argument == "cuda" if isinstance(argument, str) else _is_cuda(argument)
    return torch.device("cpu") if is_cuda else argument


def _is_cuda(argument: object) -> bool:
    return isinstance(argument, torch.device) and argument.type == "cuda"


def install(monkeypatch) -> OnTheCPU:
    """Puts the functions of torch.cuda in place; returns the mode to enter."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", contextlib.nullcontext)
    for name in ("start", "stop"):
        monkeypatch.setattr(torch.cuda.profiler, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a CPU")
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: time.sleep(min(cycles / 2e9, 1e-3)))
    return OnTheCPU()
