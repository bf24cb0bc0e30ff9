"""Train a network on somebody's own pictures and masks, or on a known data set.

``OUT/last.pt`` holds the whole state of the run and is written after every epoch, and at once on
Ctrl-C or SIGTERM; ``--resume`` goes on from it with the results of a run that never stopped.
``OUT/best.pt`` holds the fp16 weights of the best validation mIoU so far, which ``evaluate`` and
``segment`` take. ``history.json``, ``log.csv``, ``curves.png`` and ``samples.png`` show the run;
``config.json`` and ``split.json`` hold the settings and which pictures are kept for validation.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from fastseg.cli.options import (
    add_channel_options,
    add_config_option,
    add_data_options,
    add_machine_options,
    add_model_option,
    model_name,
    use_threads,
)
from fastseg.cli.running import INTERRUPTED
from fastseg.data.augmentation import AUGMENTERS
from fastseg.train.config import Config
from fastseg.train.interrupt import Interrupted, StopSignal
from fastseg.train.processes import leave, rank
from fastseg.train.schedule import CLASS_WEIGHTS, OPTIMIZERS, SCHEDULES
from fastseg.train.trainer import Trainer

EXAMPLES = """examples:
  fastseg train --images img --masks mask --classes names.txt --model unet --epochs 30 --out run
  fastseg train --images img --masks mask --channels 13 --bands 4 3 2 8 --model unet --out run
  fastseg train --data VOC2012 --model deeplabv3plus --option backbone=mobilenet_v2 --out run
  fastseg train --config run/config.json --out again --seed 1
  torchrun --nproc-per-node 2 -m fastseg.train --data CAMVID --device cuda --out run
"""

DEFAULT = Config()

NUMBERS = {
    "backbone_lr": "learning rate of the backbone, as a share of --lr",
    "epochs": "the learning rate falls to zero over all of them; may change on --resume",
    "accumulate": "parts in which a batch is computed one after the other, for less memory",
    "lr": "peak learning rate",
    "warmup": "share of the run in which the learning rate rises to its peak",
    "weight_decay": "of the optimizer",
    "momentum": "of sgd",
    "clip": "largest norm of the gradients; 0 for any",
    "ema": "decay of the averaged weights that are scored and kept, such as 0.999; 0 for none",
    "balance": "power of the class weights: 1 as they are, 0 for none",
    "eval_every": "epochs between evaluations",
    "seed": "of initialisation, order, augmentation and the choice of validation pictures",
    "workers": "processes that load pictures; 0 loads in the main one",
}
CHOICES = {
    "class_weights": (CLASS_WEIGHTS, "by the classes' pixels; auto: median for CamVid, else none"),
    "optimizer": (OPTIMIZERS, "how the weights are moved"),
    "schedule": (SCHEDULES, "how the learning rate falls"),
    "augmenter": (AUGMENTERS, "what changes pictures; auto: torchvision where it is installed"),
    "backend": (("fastseg", "torch"), "whose ops run the layers"),
}
FLAGS = {
    "bf16": "train in bfloat16 autocast",
    "fp16": "train in float16 autocast with scaled losses, on a GPU",
    "freeze_bn": "keep batch norms as they are",
    "contiguous": "NCHW rather than channels_last memory",
    "compile": "torch.compile",
    "tensorboard": "also write TensorBoard's files",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg train`."""
    add_data_options(parser)
    parser.add_argument(
        "--split",
        default="",
        help="shares to train and validate with, such as 0.8,0.2; or a file: JSON with names under "
        "train and val, or a text of validation names (default: what the data say, or a fifth)",
    )
    add_channel_options(parser)
    for name, text in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            _flag(name),
            type=float,
            nargs="+",
            metavar="X",
            help=f"{text} of each channel that is taken, in the units of the files (default: that "
            "of the pictures to train on)",
        )
    parser.add_argument("-o", "--out", default="", metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--model",
        type=model_name,
        default=DEFAULT.model,
        metavar="NAME",
        help="a network of fastseg, or smp:NAME or torchvision:NAME (default: %(default)s)",
    )
    add_model_option(parser)
    parser.add_argument(
        "--backbone-weights",
        default="",
        metavar="FILE",
        help="ImageNet checkpoint of torchvision that the backbone starts from",
    )
    parser.add_argument(
        "--loss",
        default=DEFAULT.loss,
        help="ce, dice, focal, jaccard, ohem, or a sum such as ce+0.5*dice (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images per step, in all processes together (default: 8, or fewer where that would "
        "leave less than 8 steps an epoch)",
    )
    parser.add_argument(
        "--height", type=int, help="short side that images are resized to, pixels (default: theirs)"
    )
    parser.add_argument(
        "--crop",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="training crop, pixels (default: three quarters of the height)",
    )
    parser.add_argument(
        "--augment",
        nargs="+",
        default=[],
        metavar="NAME=NUMBER",
        help="random changes: scale=0.75:1.5 flip=0.5 vflip=0 rotate=0 colour=0.4 elastic=0 "
        "are the defaults; none for none",
    )
    for name, text in NUMBERS.items():
        value = getattr(DEFAULT, name)
        parser.add_argument(
            _flag(name), type=type(value), default=value, help=f"{text} (default {value})"
        )
    for name, (choices, text) in CHOICES.items():
        value = getattr(DEFAULT, name)
        parser.add_argument(
            _flag(name), choices=choices, default=value, help=f"{text} (default {value})"
        )
    for name, text in FLAGS.items():
        parser.add_argument(_flag(name), action="store_true", help=text)
    add_machine_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.pt")
    add_config_option(parser)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def config_of(options: argparse.Namespace) -> Config:
    """Returns the settings of a command line."""
    given = {field.name: getattr(options, field.name) for field in fields(Config)}
    given |= {name: _tuple(given[name]) for name in ("crop", "bands", "mean", "std")}
    given |= {
        "options": dict(options.options),
        "augment": tuple(options.augment),
    }
    return Config(**given)


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


def run(options: argparse.Namespace) -> int:
    """Trains a network; returns 0, or 130 after a signal, with the state saved."""
    config = config_of(options)
    if not config.out:
        raise ValueError("give --out DIR, the folder for the results")
    use_threads(config.threads)
    trainer = Trainer(config)
    try:
        if options.resume:
            trainer.resume()
        elif (trainer.out / "last.pt").exists():
            raise ValueError(f"{config.out} holds a run; give --resume or another --out")
        if rank() == 0:
            _introduce(trainer)
        with StopSignal() as stop:
            trainer.run(stop)
    except Interrupted as interrupted:
        print(f"{interrupted}: saved; go on with --resume", file=sys.stderr)
        return INTERRUPTED
    finally:
        leave()
    return 0


def _introduce(trainer: Trainer) -> None:
    """Says what is trained on: labels are ids without names, so that the first line names them."""
    config, source = trainer.config, trainer.source
    place = config.data or f"{config.images} with {config.masks}"
    kind = f" is {source.name}" if config.data else ""
    print(f"{place}{kind}: {', '.join(source.classes.names)}", file=sys.stderr)
    for note in trainer.notes:
        print(f"fastseg: {note}", file=sys.stderr)
