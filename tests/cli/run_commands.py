"""Runs commands of fastseg as processes of their own, forked from one that has imported it.

Reads a JSON list of dicts from the file that is its first argument, and prints a list of results:

    command      "fastseg", "fastseg.train" or "fastseg.train.evaluate"
    arguments    texts; surrogates stand for bytes that are no UTF-8
    stdout       "file" (default), "/dev/full", "no reader" or "closed"
    encoding     of the standard streams, default "utf-8"
    memory       bytes that the process may get beside those it has, default no limit
    file_size    bytes of the files that it may write, default no limit

A result has the exit status, and what came on both streams.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile

import torch.fx.experimental.symbolic_shapes  # noqa: F401  (imports sympy, as commands do late)

from fastseg._core import startup
from fastseg.cli import main as fastseg
from fastseg.train.__main__ import main as train
from fastseg.train.evaluate import main as evaluate

MAINS = {"fastseg": fastseg, "fastseg.train": train, "fastseg.train.evaluate": evaluate}


def run(case: dict) -> dict | None:
    """The result of one case; None in the process that is the command."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            connect(case.get("stdout", "file"), out.fileno(), err.fileno())
            return None
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {"status": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}


def connect(stdout: str, out: int, err: int) -> None:
    """Give this process the standard streams that a case asks for."""
    if stdout == "/dev/full":
        out = os.open(stdout, os.O_WRONLY)
    elif stdout == "no reader":
        reader, out = os.pipe()
        os.close(reader)
    os.dup2(out, 1)
    os.dup2(err, 2)


def main() -> None:
    """Run all cases, then print; or be the command of one."""
    with open(sys.argv[1]) as file:
        cases = json.load(file)
    results = []
    # A process that ends looks through all objects several times, of which there are a million. It
    # does not look through those that were there before it was forked.
    gc.freeze()
    for case in cases:
        result = run(case)
        if result is None:
            become(case)
        results.append(result)
    print(json.dumps(results))


def become(case: dict) -> None:
    """Run the command of a case and end as Python does."""
    encoding = case.get("encoding", "utf-8")
    sys.stdout.reconfigure(encoding=encoding, errors="strict")
    sys.stderr.reconfigure(encoding=encoding)
    if case.get("stdout") == "closed":
        sys.stdout = None
    if "memory" in case:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + case["memory"],) * 2)
    if "file_size" in case:
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["file_size"],) * 2)
    startup.end_on_signals()
    sys.exit(MAINS[case["command"]](case["arguments"]))


if __name__ == "__main__":
    main()
