"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from fastseg.data.augmentation import AUGMENTERS, Augmentation, resolved_augmenter
from fastseg.data.channel_stats import mean_and_std
from fastseg.data.layouts import CAMVID_LAYOUT
from fastseg.data.picture_format import PictureFormat
from fastseg.data.source import DataOptions, DataSource
from fastseg.data.transforms import MEAN, STD
from fastseg.train.losses import parse_loss
from fastseg.train.schedule import CLASS_WEIGHTS, OPTIMIZERS, SCHEDULES

MAY_CHANGE = (
    *("data", "images", "masks", "out", "backend", "backbone_weights", "epochs", "eval_every"),
    *("threads", "device", "workers", "compile", "tensorboard", "skip_broken"),
)
"""Names of settings that a resumed run may change."""

CAMVID_HEIGHT, CAMVID_CROP = 240, (180, 240)
"""Short side and crop for CamVid's pictures of 360x480."""

HEIGHTS = (32, 512)
"""Least and greatest short side that is chosen for somebody's own pictures."""

BATCH, STEPS = 8, 8
"""Pictures of a batch where an epoch has so many steps at least; with fewer pictures, fewer."""

CROP_SHARE, CROP_STEP = 0.75, 32
"""Side of their crops, as a share of the short side, and what it is a multiple of."""

INFINITE = float("inf")
RANGES = {
    "backbone_lr": (0, INFINITE),
    "epochs": (1, INFINITE),
    "batch_size": (1, INFINITE),
    "accumulate": (1, INFINITE),
    "lr": (0, INFINITE),
    "weight_decay": (0, INFINITE),
    "momentum": (0, 0.9999),
    "warmup": (0, 0.99),
    "clip": (0, INFINITE),
    "ema": (0, 0.99999),
    "balance": (0, INFINITE),
    "height": (1, 10_000),
    "crop": (1, 10_000),
    "eval_every": (1, INFINITE),
    "seed": (0, 2**31 - 1),
    "threads": (0, 1024),
    "workers": (0, 256),
}
"""Least and greatest value of each setting that is a number."""

CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "class_weights": CLASS_WEIGHTS,
    "augmenter": AUGMENTERS,
}
"""Values of settings that are one of a few."""


@dataclass(frozen=True)
class Config:
    """Settings of a training run; see ``fastseg train --help``.

    ``batch_size``, ``height`` and ``crop`` of None, and "auto", are chosen by :meth:`resolved`; so
    are ``mean`` and ``std`` where ``channels`` are given. Without channels pictures are RGB.
    """

    data: str = ""
    out: str = ""
    images: str = ""
    masks: str = ""
    classes: str = ""
    split: str = ""
    skip_broken: bool = False
    channels: int | None = None  # of a picture's file
    bands: tuple[int, ...] | None = None  # those that the network takes, from 1 on
    mean: tuple[float, ...] | None = None  # of each band, in the units of the files
    std: tuple[float, ...] | None = None
    model: str = "segnet_basic"
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the model's builder
    backbone_weights: str = ""
    backbone_lr: float = 1.0  # a factor of lr
    backend: str = "fastseg"
    loss: str = "ce"
    class_weights: str = "auto"
    balance: float = 1.0
    optimizer: str = "adamw"
    epochs: int = 100
    batch_size: int | None = None
    accumulate: int = 1
    lr: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 1e-2
    momentum: float = 0.9
    clip: float = 0.0
    ema: float = 0.0
    freeze_bn: bool = False
    height: int | None = None
    crop: tuple[int, int] | None = None
    augment: tuple[str, ...] = ()
    augmenter: str = "auto"
    eval_every: int = 1
    bf16: bool = False
    fp16: bool = False
    contiguous: bool = False
    compile: bool = False
    device: str = "cpu"
    seed: int = 0
    threads: int = 0
    workers: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Raises a ValueError that names a setting which is out of range."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (least if value is None else value,)
            if not all(math.isfinite(v) and least <= v <= most for v in values):
                upper = f" and at most {most}" if math.isfinite(most) else ""
                raise ValueError(f"{name} must be at least {least}{upper}, got {value}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        parse_loss(self.loss)
        Augmentation.parse(self.augment)
        self._check_channels()
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 exclude each other")
        if self.fp16 and not self.device.startswith("cuda"):
            raise ValueError(f"fp16 needs a GPU, got the device {self.device}: bf16 runs on both")

    def _check_channels(self) -> None:
        """Raises a ValueError unless bands, mean and std fit the channels, and these the model."""
        form = self.form
        if form is None:
            for name in ("bands", "mean", "std"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs channels, the number of them in a picture")
            return
        for name in ("mean", "std"):
            values = getattr(self, name)
            least = -math.inf if name == "mean" else 0
            if values is not None and (
                len(values) != form.in_channels
                or not all(math.isfinite(v) and v > least for v in values)
            ):
                positive = " positive" * (name == "std")
                raise ValueError(
                    f"{name} must be {form.in_channels}{positive} numbers, one for each channel "
                    f"that the network takes, got {' '.join(f'{v:g}' for v in values)}"
                )
        taken = self.options.get("in_channels", form.in_channels)
        if taken != form.in_channels:
            raise ValueError(
                f"option in_channels={taken} differs from the {form.in_channels} channels that are "
                "read; leave it out"
            )

    @property
    def form(self) -> PictureFormat | None:
        """How pictures are read as they are stored; None is as RGB of 8 bits."""
        return None if self.channels is None else PictureFormat(self.channels, self.bands or ())

    @property
    def model_options(self) -> dict[str, Any]:
        """The arguments of the model's builder, with the number of channels that it takes."""
        form = self.form
        taken = {} if form is None else {"in_channels": form.in_channels}
        return {**self.options, **taken}

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """The arguments ``mean`` and ``std`` of transforms, once they are resolved."""
        return {"mean": self.mean or MEAN, "std": self.std or STD}

    @property
    def data_options(self) -> DataOptions:
        """Where the data are."""
        return DataOptions(
            self.data,
            self.images,
            self.masks,
            self.classes,
            self.split,
            self.seed,
            self.skip_broken,
            self.form,
        )

    def resolved(self, source: DataSource, processes: int = 1) -> Config:
        """Returns the settings with all that the data decide.

        A batch has 8 pictures, or fewer, but two, where an epoch would have less than 8 steps; it
        can be shared out among the processes and the parts in which it is computed.
        Own pictures keep their median short side, from 32 to 512 pixels, and are cropped to squares
        of three quarters of it. CamVid gets half of the SegNet paper's size, and median frequency
        weights; other data get none. Mean and standard deviation of channels are those of the
        pictures to train on.
        """
        camvid = source.name == CAMVID_LAYOUT.name
        height, crop, weights = self.height, self.crop, self.class_weights
        if height is None and camvid:
            height = CAMVID_HEIGHT
        elif height is None:
            short = median(min(found.size) for found in source.surveyed_part("train"))
            height = max(HEIGHTS[0], min(HEIGHTS[1], int(short)))
        if crop is None and camvid and height == CAMVID_HEIGHT:
            crop = CAMVID_CROP
        elif crop is None:
            side = max(CROP_STEP, -(-int(CROP_SHARE * height) // CROP_STEP) * CROP_STEP)
            crop = (side, side)
        batch, shares = self.batch_size, processes * self.accumulate
        if batch is None:
            batch = min(BATCH, max(2, len(source.parts["train"]) // STEPS))
            batch = -(-batch // shares) * shares
        if weights == "auto":
            weights = "median" if camvid else "none"
        table = Augmentation.parse(self.augment)
        mean, std = self.mean, self.std
        if self.form is not None and None in (mean, std):
            found = mean_and_std([found.stats for found in source.surveyed_part("train")])
            mean, std = mean or found[0], std or found[1]
        return replace(
            self,
            mean=mean,
            std=std,
            batch_size=batch,
            height=height,
            crop=crop,
            class_weights=weights,
            augment=tuple(table.texts()),
            augmenter=resolved_augmenter(self.augmenter, table),
        )
