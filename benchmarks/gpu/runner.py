"""Runs groups of cases and commands under limits of time; each result is kept as it comes.

A group's cases run in a process of their own, which is killed when a case takes too long; another
one goes on with the next case. So neither a case that hangs, nor one that crashes, nor one that
leaves the device unusable costs more than itself.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.gpu.table import COMMAND, NOT_RUN
from benchmarks.gpu.worker import OK

COLUMNS = ("kind", "group", "case", "candidate", "status", "gpu_us", "p20_us", "p80_us", "call_us")
COLUMNS += ("host_us", "floor_us", "modelled", "seconds", "note")
START_SECONDS = 90.0
"""What a process may take to import torch, find the device and list its cases."""

Row = dict[str, object]


@dataclass(frozen=True)
class Group:
    """Cases that one process measures, and the seconds for all of them."""

    name: str
    seconds: float
    module: str = "benchmarks.gpu.cases"


@dataclass(frozen=True)
class Step:
    """Commands that run side by side.

    Attributes:
        name: its name.
        seconds: what it may take.
        commands: the commands, by the names of their logs.
        excerpt: a pattern of lines of the logs that are shown at the end.
        environment: variables beside those of this process.
    """

    name: str
    seconds: float
    commands: dict[str, Sequence[str]]
    excerpt: str = "(?!)"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Results:
    """The rows so far, each written to a file at once.

    Attributes:
        path: the CSV file.
        rows: all rows.
        machine: what they were measured with.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    machine: str = "no machine was seen"

    def __post_init__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS).writeheader()

    def add(self, **row: object) -> None:
        """Keeps a row, and prints that it is there."""
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        text = f"{row['group']}: {row['case']} {row.get('candidate', '')} {row['status']}"
        print(f"{text} {row.get('gpu_us', '')} {row.get('note', '')}"[:160], flush=True)


def kill(process: subprocess.Popen) -> None:
    """Ends a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Worker:
    """A process that measures a group's cases from one of them on.

    Args:
        group: the group.
        start: the number of the first case.
        log: a file; what it prints goes there.
    """

    def __init__(self, group: Group, start: int, log: IO[str]):
        self.log = Path(log.name)
        command = [sys.executable, "-m", "benchmarks.gpu.worker", group.module, group.name]
        self.process = subprocess.Popen(
            [*command, str(start)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def message(self, deadline: float) -> dict[str, object] | None:
        """Returns the next message, or None if the process ended without another.

        Raises:
            TimeoutError: none came before the deadline.
        """
        try:
            line = self.lines.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise TimeoutError from None
        return None if line is None else json.loads(line)

    def exit_code(self) -> int | None:
        """Returns the code of a process that closed its output; None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(1)
        return None


def run_group(group: Group, deadline: float, results: Results, logs: Path) -> None:
    """Measures a group.

    Args:
        group: the group.
        deadline: when all must be over, by time.monotonic().
        results: takes a row for each candidate, and one for each case without a figure.
        logs: the folder of the group's log.
    """
    deadline = min(deadline, time.monotonic() + group.seconds)
    jobs: list[tuple[str, str]] = []
    done, why = 0, "no time was left"
    with (logs / f"{group.name}.log").open("w") as log:
        while time.monotonic() < deadline:
            worker = Worker(group, done, log)
            try:
                finished = _follow(worker, group, jobs, deadline, results)
            finally:
                kill(worker.process)
            if finished is None:  # the next one would not start either
                why = "its process did not start"
                break
            done = finished
            if done == len(jobs):
                return
    for name, _ in jobs[done:]:
        results.add(group=group.name, case=name, status=NOT_RUN, note=why)
    if not jobs and why == "no time was left":
        results.add(group=group.name, case="all", status=NOT_RUN, note=why)


def _follow(
    worker: Worker,
    group: Group,
    jobs: list[tuple[str, str]],
    deadline: float,
    results: Results,
) -> int | None:
    """Keeps what a worker reports until it ends or takes too long.

    Args:
        worker: the process.
        group: its group.
        jobs: takes the names of all cases and of the model's.
        deadline: when the group must be over.
        results: takes the rows.

    Returns:
        The number of cases that are done, with those before this worker; None if it began none.
    """
    done, case = None, f"{group.name}: start"
    began, limit = time.monotonic(), START_SECONDS
    while True:
        try:
            message = worker.message(min(deadline, began + limit))
        except TimeoutError:
            note = f"took over {time.monotonic() - began:.1f} s"
            results.add(group=group.name, case=case, status="timeout", note=note)
            break
        if message is None:
            note = f"the process ended with {worker.exit_code()}: {last_line(worker.log)}"
            results.add(group=group.name, case=case, status="crash", note=note)
            break
        if "jobs" in message:
            jobs[:] = map(tuple, message["jobs"])
            results.machine = message["machine"]
        elif "begin" in message:
            began, limit = time.monotonic(), message["seconds"]
            done, case = message["begin"] + 1, jobs[message["begin"]][0]
        elif "status" in message:
            common = {"group": group.name, "case": case, "modelled": jobs[done - 1][1]}
            common |= {"status": message["status"], "note": message["note"]}
            common["seconds"] = f"{time.monotonic() - began:.1f}"
            for row in message["rows"] or [{}]:
                results.add(**common, **row)
            if message["last"]:  # of this process: the next one goes on
                break
    return done


def run_step(step: Step, deadline: float, results: Results, logs: Path) -> None:
    """Runs a step's commands side by side; a row for each says how it ended.

    A command that is not installed is a row too.
    """
    began = time.monotonic()
    deadline = min(deadline, began + step.seconds)
    running: dict[str, subprocess.Popen] = {}
    for name, command in step.commands.items():
        common = {"kind": COMMAND, "group": step.name, "case": name}
        if began >= deadline:
            results.add(**common, status=NOT_RUN, note="no time was left")
            continue
        with (logs / f"{name}.log").open("w") as log:
            try:
                running[name] = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    env=os.environ | step.environment,
                    start_new_session=True,
                )
            except OSError as error:
                results.add(**common, status=NOT_RUN, note=f"{command[0]}: {error.strerror}")
    for name, process in running.items():
        row = {"kind": COMMAND, "group": step.name, "case": name}
        try:
            code = process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            row["status"] = "timeout"
        else:
            row["status"] = OK if code == 0 else "failed"
        kill(process)
        seconds = f"{time.monotonic() - began:.1f}"
        results.add(**row, seconds=seconds, note=last_line(logs / f"{name}.log"))


def last_line(path: Path) -> str:
    """Returns the last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:160]


def excerpts(step: Step, logs: Path, most: int = 12) -> list[str]:
    """Returns the first lines of a step's logs that its pattern finds."""
    paths = [logs / f"{name}.log" for name in step.commands]
    texts = [path.read_text(errors="replace") for path in paths if path.exists()]
    lines = (line for text in texts for line in text.splitlines())
    return [line for line in lines if re.search(step.excerpt, line)][:most]
