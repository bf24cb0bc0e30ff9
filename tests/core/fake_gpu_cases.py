"""Groups of a device that only sleeps, for the runner of benchmarks/gpu.sh: good, bad and slow."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.gpu.worker import Job, Outcome

broken = False


def machine() -> str:
    return "NVIDIA H200 that sleeps"


def usable() -> bool:
    return not broken


def row(candidate: str, microseconds: float) -> dict[str, object]:
    times = {"gpu_us": microseconds, "floor_us": 10.0, "host_us": 5.0}
    return {"candidate": candidate} | times


def good() -> Outcome:
    os.write(1, b"a kernel's own words\n")
    return Outcome([row("fastseg", 20.0), row("eager", 50.0), row("slow eager", 90.0)])


def red() -> Outcome:
    return Outcome([row("fastseg", 20.0), row("eager", 50.0)], red="differs by 3")


def raises() -> Outcome:
    raise ValueError("no such kernel\nand more")


def breaks_the_device() -> Outcome:
    global broken
    broken = True
    raise RuntimeError("illegal memory access")


def needs_the_device() -> Outcome:
    assert not broken
    return good()


def hangs() -> Outcome:
    time.sleep(60)
    return Outcome()


def crashes() -> Outcome:
    os._exit(7)


def sleeps() -> Outcome:
    time.sleep(0.25)
    return good()


def jobs(group: str) -> list[Job]:
    if group == "good":
        return [Job("a", good, modelled="op 3x4"), Job("b", good)]
    if group == "bad":
        bad = [red, raises, breaks_the_device, needs_the_device, hangs, crashes]
        return [Job(run.__name__, run, 0.3) for run in (*bad, good, crashes)]
    if group == "slow":
        return [Job(f"number {i}", sleeps) for i in range(20)]
    if group == "starts once" and sys.argv[-1] == "0":
        return [Job(run.__name__, run) for run in (crashes, good)]
    if group == "hangs":
        hangs()
    raise ImportError("no such library")
