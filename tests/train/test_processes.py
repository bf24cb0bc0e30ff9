"""Batch norms of several processes, and the end of one that has exchanged tensors with others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.process_groups import torchrun

PROGRAM = """
import atexit, threading, time
import torch
import torch.distributed as dist
from fastseg.train.processes import end, keep

main, needed = threading.get_ident(), threading.Event()

def need_lock(future):
    if threading.get_ident() != main:  # which is called where the exchange has already ended
        needed.set()
        while True:
            time.sleep(0.001)

dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
keep(dist.group.WORLD)
while not needed.wait(0.02):
    dist.all_reduce(torch.zeros(3), async_op=True).get_future().then(need_lock)
atexit.register(print, "exit function")
threading.Timer(0.1, print, ("thread",)).start()
print("program")
end(3)
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """How a program has ended; one that hangs is an error."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
def test_a_thread_of_gloo_may_need_the_lock_at_the_end():
    done = run(PROGRAM)
    assert done.returncode == 3, done.stderr
    assert done.stdout.split("\n") == ["program", "thread", "exit function", ""]


def test_a_process_alone_ends_as_python_does():
    assert run("from fastseg.train.processes import end; end(3)").returncode == 3


def test_batch_norms_take_the_statistics_of_all_processes(port):
    done = subprocess.run(
        torchrun("tests.train.batch_norms_of_all"),
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
