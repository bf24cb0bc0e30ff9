"""Processes of one group in a test: how they are started, and how they end."""

from __future__ import annotations

import sys

import torch.distributed as dist

from fastseg.train.processes import keep


def torchrun(module: str, *words: str) -> list[str]:
    """The command that runs a module in two processes."""
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", module]
    return [sys.executable, *run, *words]


def destroy_process_group() -> None:
    """Leaves the process group without its destructor, which could wait for ever (:func:`keep`)."""
    keep(dist.group.WORLD)
    dist.destroy_process_group()
