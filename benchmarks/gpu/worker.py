"""Measures the cases of a group, one after the other, in a process that may be killed at any time.

python -m benchmarks.gpu.worker MODULE GROUP START

MODULE has a function ``jobs(group)`` that returns a list of :class:`Job`, ``machine()``, which
describes the device, and ``usable()``, which says whether it still works after a job failed. Lines
of JSON on the standard output tell what happens; all else that is printed goes to the standard
error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

OK = "ok"
RED = "red"
ERROR = "error"


@dataclass
class Outcome:
    """What a job found.

    Attributes:
        rows: a dict for each candidate, with columns of ``runner.COLUMNS``.
        red: why the result is wrong; empty if it is right.
    """

    rows: list[dict[str, object]] = field(default_factory=list)
    red: str = ""


@dataclass(frozen=True)
class Job:
    """A case to measure.

    Attributes:
        name: its name in the table, unique in its group.
        run: builds, checks and measures it.
        seconds: what it may take; a job that takes longer is killed.
        modelled: "OP SHAPE" of the same call in benchmarks.gpu_model, or "".
    """

    name: str
    run: Callable[[], Outcome]
    seconds: float = 20.0
    modelled: str = ""


def attempt(job: Job) -> dict[str, object]:
    """Runs a job and returns the message about it."""
    try:
        outcome = job.run()
    except Exception as error:
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        return {"status": ERROR, "note": why, "rows": []}
    status = RED if outcome.red else OK
    return {"status": status, "note": outcome.red, "rows": outcome.rows}


def main() -> None:
    """Command line."""
    module, group, start = sys.argv[1:]
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(**message: object) -> None:
        channel.write(json.dumps(message) + "\n")

    source = importlib.import_module(module)
    jobs = source.jobs(group)
    send(jobs=[[job.name, job.modelled] for job in jobs], machine=source.machine())
    for number in range(int(start), len(jobs)):
        job = jobs[number]
        send(begin=number, seconds=job.seconds)
        print(f"--- {group}: {job.name}", flush=True)
        message = attempt(job)
        broken = message["status"] == ERROR and not source.usable()
        last = broken or number + 1 == len(jobs)
        send(**message, last=last)
        if last:
            return


if __name__ == "__main__":
    main()
