"""Settings of a training run, and the command line that gives them."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field
from typing import Any

from fastseg.cli.options import add_model_option
from fastseg.models import list_models

MAY_CHANGE = ("data", "out", "backend", "backbone_weights", "epochs", "eval_every", "threads")
"""Names of settings that a resumed run may change."""

INFINITE = float("inf")
RANGES = {
    "backbone_lr": (0, INFINITE),
    "epochs": (1, INFINITE),
    "batch_size": (1, INFINITE),
    "lr": (0, INFINITE),
    "weight_decay": (0, INFINITE),
    "balance": (0, INFINITE),
    "height": (1, 10_000),
    "crop": (1, 10_000),
    "eval_every": (1, INFINITE),
    "seed": (0, 2**31 - 1),
    "threads": (0, 1024),
}
"""Least and greatest value of each setting that is a number."""


@dataclass(frozen=True)
class Config:
    """Settings of a training run; see ``python -m fastseg.train --help``."""

    data: str
    out: str
    model: str = "segnet_basic"
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the model's builder
    backbone_weights: str = ""
    backbone_lr: float = 1.0  # a factor of lr
    backend: str = "fastseg"
    epochs: int = 100
    batch_size: int = 8
    lr: float = 3e-3
    weight_decay: float = 1e-2
    balance: float = 1.0
    height: int = 240
    crop: tuple[int, int] = (180, 240)
    eval_every: int = 5
    bf16: bool = False
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        """Raises a ValueError that names a setting which is out of range."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(v) and least <= v <= most for v in values):
                upper = f" and at most {most}" if math.isfinite(most) else ""
                raise ValueError(f"{name} must be at least {least}{upper}, got {value}")


def parse_arguments(
    arguments: list[str] | None = None, description: str | None = None
) -> tuple[Config, bool]:
    """Returns the configuration of a command line, and whether to resume."""
    parser = argparse.ArgumentParser(prog="python -m fastseg.train", description=description)
    default = Config(data="", out="")
    parser.add_argument("--data", required=True, help="CamVid folder")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--model", default=default.model, choices=list_models())
    parser.add_argument("--backend", default=default.backend, choices=("fastseg", "torch"))
    helps = {
        "backbone_weights": "ImageNet checkpoint of torchvision that the backbone starts from",
        "backbone_lr": "learning rate of the backbone, as a share of --lr",
        "epochs": "the learning rate falls to zero over all of them; may change on --resume",
        "batch_size": "images per step",
        "lr": "peak learning rate",
        "weight_decay": "of AdamW",
        "balance": "power of the median frequency class weights: 1 as in the paper, 0 for none",
        "height": "short side that images are resized to, pixels",
        "eval_every": "epochs between evaluations",
        "seed": "of initialisation, order and augmentation",
        "threads": "CPU threads; 0 is torch's choice",
    }
    for name, text in helps.items():
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(value),
            default=value,
            help=f"{text} (default {'none' if value == '' else value})",
        )
    add_model_option(parser)
    parser.add_argument(
        "--crop",
        type=int,
        nargs=2,
        default=default.crop,
        metavar=("H", "W"),
        help="training crop, pixels (default 180 240)",
    )
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 autocast")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    options = vars(parser.parse_args(arguments))
    resume = options.pop("resume")
    options |= {"crop": tuple(options["crop"]), "options": dict(options["options"])}
    return Config(**options), resume
