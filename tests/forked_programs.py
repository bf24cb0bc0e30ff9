"""Runs Python programs as processes of their own, forked from one that has imported torch.

This import takes several times longer than what most tests' programs do after it. Each program
imports fastseg anew.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_programs(programs: Sequence[Sequence[str]]) -> list[str]:
    """Runs programs one by one, from the project's root.

    Args:
        programs: what Python is given for each: ``-c`` and a text, ``-m`` and a module, or a file,
            and the program's arguments.

    Returns:
        What each has printed.

    Raises:
        RuntimeError: one has ended with another status than 0; with what it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked_programs"],
        cwd=ROOT,
        input=json.dumps(programs),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def become(program: Sequence[str]) -> None:
    """Goes on as that program in this process, from its first line to its end."""
    first, *rest = program
    if first == "-c":
        sys.argv = [first, *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(program)
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")
    sys.exit()


def main() -> None:
    """Reads programs from stdin, and prints what each has printed."""
    programs, outputs = json.load(sys.stdin), []
    import torch  # noqa: F401  (here alone, which is why the programs need not)

    gc.freeze()  # what is there before a fork is not looked through as the fork ends
    for program in programs:
        with tempfile.TemporaryFile("w+") as out:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                break
            _, status = os.waitpid(child, 0)
            out.seek(0)
            outputs.append(out.read())
        if status != 0:
            sys.exit(f"{program}: status {os.waitstatus_to_exitcode(status)}")
    else:
        print(json.dumps(outputs))
        return
    become(program)


if __name__ == "__main__":
    main()
