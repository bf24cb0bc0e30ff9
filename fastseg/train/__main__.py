"""The command ``python -m fastseg.train``."""

from __future__ import annotations

import sys

import torch

import fastseg.train
from fastseg.checkpoint import CheckpointError
from fastseg.interrupt import Interrupted, StopSignal
from fastseg.train.config import parse_arguments
from fastseg.train.trainer import Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, 2 for unusable input, or 130 after an interruption."""
    config, resume = parse_arguments(arguments, fastseg.train.__doc__)
    if config.threads:
        torch.set_num_threads(config.threads)
    try:
        trainer = Trainer(config)
        if resume:
            trainer.resume()
        elif (trainer.out / "last.pt").exists():
            raise ValueError(f"{config.out} holds a run; give --resume or another --out")
    except (OSError, TypeError, ValueError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with StopSignal() as stop:
            trainer.run(stop)
    except Interrupted as interrupted:
        print(f"{interrupted}: saved; go on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
