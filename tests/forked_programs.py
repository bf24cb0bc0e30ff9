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
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_each(
    programs: Sequence[Sequence[str]], environment: Mapping[str, str] = os.environ
) -> list[subprocess.CompletedProcess[str]]:
    """Runs programs one by one, from the project's root; returns how each has ended.

    Args:
        programs: what Python is given for each: ``-c`` and a text, ``-m`` and a module, or a file,
            and the program's arguments.
        environment: the variables of all programs.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked_programs"],
        cwd=ROOT,
        env=environment,
        input=json.dumps(programs),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return [subprocess.CompletedProcess(*ended) for ended in json.loads(done.stdout)]


def run_programs(programs: Sequence[Sequence[str]]) -> list[str]:
    """Runs programs as :func:`run_each` does; returns what each has printed.

    Raises:
        RuntimeError: one has ended with another status than 0; with what it said.
    """
    ended = run_each(programs)
    for program in ended:
        if program.returncode != 0:
            raise RuntimeError(f"{program.args}: status {program.returncode}\n{program.stderr}")
    return [program.stdout for program in ended]


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
    """Reads programs from stdin, and prints the arguments of each's CompletedProcess."""
    programs, ended = json.load(sys.stdin), []
    import torch  # noqa: F401  (here alone, which is why the programs need not)

    gc.freeze()  # what is there before a fork is not looked through as the fork ends
    for program in programs:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                break
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0), err.seek(0)
            ended.append((program, status, out.read(), err.read()))
    else:
        print(json.dumps(ended))
        return
    become(program)


if __name__ == "__main__":
    main()
