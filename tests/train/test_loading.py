"""Workers that load a run's batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

KILLED = """
import multiprocessing, os, signal, sys, time
import torch
from torch.utils.data._utils.worker import ManagerWatchdog
from fastseg.train.loading import Batches, loader

parent = os.getpid()
begin = ManagerWatchdog.__init__


def begin_late(self):
    while os.getppid() == parent:
        time.sleep(0.01)
    begin(self)


class Samples(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return torch.zeros(1), torch.zeros(1)


ManagerWatchdog.__init__ = begin_late
multiprocessing.set_start_method("fork")
samples = iter(loader(Samples(), Batches([(0, 0), (1, 1)], 1), 2, False))
print("started", flush=True)
os.kill(parent, signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are forked on Linux")
def test_workers_end_with_a_run_that_is_killed_while_they_begin():
    """What they write to stays open as long as one of them lives."""
    run = [sys.executable, "-c", KILLED]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    assert done.stdout == "started\n"
