"""Comparison of a model on fastseg's ops and on torch's: time, peak memory and equality."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Measurement:
    """One backend's inference of one input.

    Attributes:
        backend: the backend's name.
        seconds: median time.
        peak_bytes: most bytes of tensors alive at once, without the input and the weights.
        output: the model's output.
    """

    backend: str
    seconds: float
    peak_bytes: int
    output: Tensor


@torch.inference_mode()
def compare(
    models: dict[str, Callable[[Tensor], Tensor]], x: Tensor, rounds: int = 7
) -> list[Measurement]:
    """Runs each model on x in turns, so that a slow moment of the machine meets all of them.

    Args:
        models: the models in evaluation mode, by their backends' names.
        x: the input.
        rounds: number of timed runs of each model, after one to warm up.
    """
    outputs = {name: model(x) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(x)
            _wait_for(x)
            seconds[name].append(time.perf_counter() - start)
    return [
        Measurement(
            name,
            statistics.median(seconds[name]),
            peak_bytes(lambda model=model: model(x), x),
            outputs[name],
        )
        for name, model in models.items()
    ]


def _wait_for(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def peak_bytes(run: Callable[[], object], x: Tensor) -> int:
    """Returns the most bytes of tensors alive at once in a run, without those from before it."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        run()
        return torch.cuda.max_memory_allocated(x.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch 2.13's profiler writes to stderr
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        alive += change
        peak = max(peak, alive)
    return peak


def table(measurements: list[Measurement]) -> str:
    """Returns lines for a terminal: a row per backend, and how the others' outputs differ."""
    first = measurements[0]
    lines = [f"  {'ops':<8} {'time':>11} {'peak memory':>14}"]
    notes = []
    for m in measurements:
        lines.append(
            f"  {m.backend:<8} {m.seconds * 1e3:>8.1f} ms {m.peak_bytes / 2**20:>10.1f} MiB"
        )
        if m is not first:
            lines[-1] += (
                f"   {m.seconds / first.seconds:.2f}x the time, "
                f"{m.peak_bytes / max(first.peak_bytes, 1):.2f}x the memory"
            )
            difference = (m.output - first.output).abs().max().item()
            equal = (m.output.argmax(1) == first.output.argmax(1)).double().mean().item()
            notes.append(
                f"  logits of {m.backend} and {first.backend} differ by at most {difference:.1e}; "
                f"{equal:.2%} of the pixels get the same class"
            )
    return "\n".join(lines + notes)
