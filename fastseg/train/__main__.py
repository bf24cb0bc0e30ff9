"""The command ``python -m fastseg.train``."""

from __future__ import annotations

import sys

import torch

import fastseg.train
from fastseg.cli.running import INTERRUPTED, run_command
from fastseg.data import CAMVID_CLASSES
from fastseg.train.config import parse_arguments
from fastseg.train.interrupt import Interrupted, StopSignal
from fastseg.train.trainer import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns 0, or the exit status of :func:`run_command`."""
    return run_command("error", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    config, resume = parse_arguments(arguments, fastseg.train.__doc__)
    if config.threads:
        torch.set_num_threads(config.threads)
    trainer = Trainer(config)
    if resume:
        trainer.resume()
    elif (trainer.out / "last.pt").exists():
        raise ValueError(f"{config.out} holds a run; give --resume or another --out")
    # Labels are ids without names, so that the line names the classes.
    print(f"{config.data} is CamVid: {', '.join(CAMVID_CLASSES)}", file=sys.stderr)
    try:
        with StopSignal() as stop:
            trainer.run(stop)
    except Interrupted as interrupted:
        print(f"{interrupted}: saved; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
