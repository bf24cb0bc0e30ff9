"""The loop of a training run, which can be stopped at any step and resumed without a trace."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fastseg._core.atomic import atomic_write
from fastseg.data import (
    CAMVID_CLASSES,
    CAMVID_IGNORE,
    CAMVID_PALETTE,
    CamVid,
    EvalTransform,
    TrainTransform,
    check_is_camvid,
    class_counts,
    median_frequency_weights,
)
from fastseg.data.transforms import MEAN, STD
from fastseg.metrics import ConfusionMatrix
from fastseg.models import build_model, main_logits
from fastseg.nn import UpsampleCrossEntropyLoss
from fastseg.train.config import MAY_CHANGE, Config
from fastseg.train.evaluation import evaluate, scores
from fastseg.train.interrupt import Interrupted, StopSignal
from fastseg.train.randomness import seed_at
from fastseg.zoo import checkpoint, load_backbone

STATE = {"config", "model", "optimizer", "epoch", "step", "loss_sum", "best", "history"}
"""Keys that a saved run must have to be resumed. Random numbers need none, see randomness.py."""


class Trainer:
    """A training run: its model, optimizer and position, and how to save and resume them.

    Args:
        config: the settings. The folder ``config.out`` is made if it is missing.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.train_set = CamVid(
            config.data,
            "train",
            TrainTransform(config.height, config.crop, CAMVID_IGNORE),
            seed=config.seed,
        )
        self.val_set = CamVid(config.data, "val", EvalTransform(config.height))
        for dataset in (self.train_set, self.val_set):
            check_is_camvid(dataset)
        self.steps = len(self.train_set) // config.batch_size
        if self.steps == 0:
            raise ValueError(
                f"batch_size must be at most the {len(self.train_set)} training images, "
                f"got {config.batch_size}"
            )
        weights = median_frequency_weights(*class_counts(self.train_set))
        self.class_weights = weights**config.balance
        seed_at(config.seed)
        model = self._build()
        self._check_crop()
        if config.backbone_weights:
            try:
                load_backbone(model, config.backbone_weights)
            except TypeError as error:  # the model has no such backbone
                raise ValueError(error) from error
        self.model = model.to(memory_format=torch.channels_last)
        self.criterion = UpsampleCrossEntropyLoss(
            self.class_weights, ignore_index=CAMVID_IGNORE, align_corners=model.align_corners
        )
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config.backbone_lr),
            lr=config.lr,
            weight_decay=config.weight_decay,
        )
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.epoch = 0  # the epoch under way
        self.step = 0  # its finished steps
        self.loss_sum = 0.0  # over these steps
        self.best = -1.0  # validation mIoU
        self.history: list[dict[str, float]] = []

    def _build(self) -> nn.Module:
        options = {"backend": self.config.backend, **self.config.options}
        try:
            return build_model(self.config.model, len(CAMVID_CLASSES), **options)
        except TypeError as error:  # the model does not have the option
            raise ValueError(error) from error

    def _check_crop(self) -> None:
        """Raises a ValueError unless the model gives scores for every pixel of a batch of crops."""
        (height, width), images = self.config.crop, self.config.batch_size
        problem = None
        with torch.device("meta"):  # only shapes count
            model, batch = self._build().train(), torch.empty(images, 3, height, width)
        try:
            scores = main_logits(model(batch))
            if scores.shape[-2:] != batch.shape[-2:]:
                problem = f"its scores are {scores.shape[-2]}x{scores.shape[-1]}"
        except (RuntimeError, ValueError) as error:  # the crop is too small
            problem = str(error).partition("\n")[0]
        if problem is not None:
            raise ValueError(
                f"{self.config.model} cannot be trained on {images} crops of {height}x{width}: "
                f"{problem}"
            )

    def save(self) -> None:
        """Writes the whole state to ``OUT/last.pt``."""
        state = {
            "config": self._settings(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images": len(self.train_set),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "best": self.best,
            "history": self.history,
        }
        checkpoint.save(state, self.out / "last.pt")

    def resume(self) -> None:
        """Reads the state that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file cannot be read or does not fit the model.
            ValueError: a setting that changes the results differs from the saved run's.
        """
        path = self.out / "last.pt"
        state = checkpoint.load(path)
        if not isinstance(state, dict) or not state.keys() >= STATE:
            raise checkpoint.CheckpointError(f"{path} is not the state of a training run")
        changed = [
            f"{name} {state['config'].get(name)} is now {value}"
            for name, value in self._settings().items()
            if name not in MAY_CHANGE and state["config"].get(name) != value
        ]
        if state.get("images", len(self.train_set)) != len(self.train_set):
            changed.append(f"{state['images']} training images are now {len(self.train_set)}")
        if changed:
            raise ValueError(f"the run of {path} had other settings: {', '.join(changed)}")
        checkpoint.load_state_dict(self.model, state["model"], source=str(path))
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step, self.loss_sum = state["epoch"], state["step"], state["loss_sum"]
        self.best, self.history = state["best"], state["history"]

    def _settings(self) -> dict[str, object]:
        return {**asdict(self.config), "crop": list(self.config.crop)}

    def run(self, stop: StopSignal) -> None:
        """Trains to the last epoch.

        Raises:
            Interrupted: a signal came; the state has been saved.
            FloatingPointError: the loss is no longer finite; the saved state is an earlier one.
        """
        while self.epoch < self.config.epochs:
            try:
                self._train_epoch(stop)
            except Interrupted:
                self.save()
                raise
            self.save()  # an interrupted evaluation runs again, the epoch does not
            record = {"epoch": self.epoch + 1, "loss": self.loss_sum / self.steps}
            last = self.epoch + 1 == self.config.epochs
            if last or (self.epoch + 1) % self.config.eval_every == 0:
                record |= self._evaluate_and_keep_best(stop)
            self.history.append(record)
            print(json.dumps(record), flush=True)
            self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
            self.save()
            with atomic_write(self.out / "history.json") as file:
                file.write(json.dumps(self.history, indent=1).encode())

    def _train_epoch(self, stop: StopSignal) -> None:
        self.model.train()
        self.train_set.set_epoch(self.epoch)
        # The order depends on seed and epoch alone, so that a resumed epoch can skip its steps.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.train_set), generator=generator).tolist()
        order = order[self.step * self.config.batch_size :]
        loader = DataLoader(self.train_set, self.config.batch_size, sampler=order, drop_last=True)
        progress = tqdm(
            loader,
            desc=f"epoch {self.epoch + 1}/{self.config.epochs}",
            total=self.steps,
            initial=self.step,
            leave=False,
            mininterval=1,
        )
        for image, label in progress:
            loss = self._train_step(image, label)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at epoch {self.epoch + 1}, step {self.step + 1}; "
                    f"start again with a lower --lr than {self.config.lr}"
                )
            self.step += 1
            self.loss_sum += loss
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            stop.check()

    def _train_step(self, image: Tensor, label: Tensor) -> float:
        seed_at(self.config.seed, self.epoch, self.step)  # for dropout
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["lr_factor"]
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            loss = self.model(image, target=label, criterion=self.criterion)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def learning_rate(self) -> float:
        """Returns the rate of the next step: 5 % linear warm-up, then a half cosine to zero."""
        done = (self.epoch * self.steps + self.step) / (self.config.epochs * self.steps)
        warmup = 0.05
        if done < warmup:
            return self.config.lr * (done + 1 / (self.config.epochs * self.steps)) / warmup
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    def _evaluate_and_keep_best(self, stop: StopSignal) -> dict[str, float]:
        matrix = evaluate(self.model, self.val_set, bf16=self.config.bf16, on_image=stop.check)
        if matrix.mean_iou() > self.best:
            self.best = matrix.mean_iou()
            checkpoint.save_model(self.out / "best.pt", self.model, self._metadata(matrix))
        return scores(matrix)

    def _metadata(self, matrix: ConfusionMatrix) -> dict[str, object]:
        return {
            "model": self.config.model,
            "options": self.config.options,
            "classes": list(CAMVID_CLASSES),
            "palette": [list(colour) for colour in CAMVID_PALETTE],
            "mean": list(MEAN),
            "std": list(STD),
            "short_side": self.config.height,
            "crop": list(self.config.crop),
            "epochs": self.epoch + 1,
            "val": scores(matrix),
            "data": f"CamVid, 11 classes, {len(self.train_set)} training images; research use only",
        }


def parameter_groups(model: nn.Module, backbone_lr: float) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: all parameters, or the backbone's apart from the others.

    Args:
        model: the model.
        backbone_lr: learning rate of ``model.backbone`` as a share of that of the rest.

    Raises:
        ValueError: backbone_lr is not 1, and the model has no backbone.
    """
    if backbone_lr == 1:
        return [{"params": list(model.parameters()), "lr_factor": 1.0}]
    if not hasattr(model, "backbone"):
        raise ValueError(f"backbone_lr must be 1: a {type(model).__name__} has no backbone")
    backbone = list(model.backbone.parameters())
    known = set(map(id, backbone))
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [
        {"params": backbone, "lr_factor": backbone_lr},
        {"params": others, "lr_factor": 1.0},
    ]
