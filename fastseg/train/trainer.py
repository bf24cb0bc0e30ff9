"""The loop of a training run, which can be stopped at any step and resumed without a trace."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fastseg._core.devices import named_device
from fastseg._core.json_values import without_nan
from fastseg.data import EvalTransform, PictureFolder
from fastseg.data.augmentation import Augmentation, TrainTransform
from fastseg.data.classes import IGNORE
from fastseg.data.source import open_data
from fastseg.data.splits import names_of
from fastseg.metrics import ConfusionMatrix
from fastseg.train.config import Config
from fastseg.train.evaluation import evaluate, scores
from fastseg.train.failures import failures_in_a_line
from fastseg.train.interrupt import Interrupted, StopSignal
from fastseg.train.loading import Batches, epoch_order, loader
from fastseg.train.logs import RunLog
from fastseg.train.losses import Loss
from fastseg.train.network import (
    build_network,
    check_crop,
    frozen_batch_norms,
    trained_by_all,
)
from fastseg.train.processes import (
    any_of_all,
    global_sum,
    is_distributed,
    join,
    rank,
    world_size,
)
from fastseg.train.progress import Progress
from fastseg.train.randomness import seed_at
from fastseg.train.samples import sample_sheet
from fastseg.train.schedule import build_optimizer, parameter_groups, rate_at
from fastseg.train.state import POSITION, class_weights, load_state, metadata_of, settings
from fastseg.zoo import checkpoint, load_backbone


class Trainer:
    """A training run: its model, optimizer and position, and how to save and resume them.

    Under torchrun every process has one, of the same settings; the first one writes the files.

    Args:
        config: the settings. The folder ``config.out`` is made if it is missing.

    Attributes:
        notes: sentences about what was decided for the user.
    """

    def __init__(self, config: Config) -> None:
        self.device = join(named_device(config.device))
        source = open_data(config.data_options, progress=rank() == 0)
        self.source, self.config = source, config.resolved(source, world_size())
        self.notes = list(source.notes)
        config = self.config
        transform = TrainTransform(
            config.height,
            config.crop,
            IGNORE,
            Augmentation.parse(config.augment),
            config.augmenter,
            **config.normalisation,
        )
        self.train_set = PictureFolder(
            source.parts["train"], source.classes, transform, seed=config.seed, form=source.form
        )
        self.val_set = PictureFolder(
            source.parts["val"],
            source.classes,
            EvalTransform(config.height, **config.normalisation),
            form=source.form,
        )
        self.samples = max(len(self.train_set), config.batch_size)
        self.steps = self.samples // config.batch_size
        self._check_batch()
        self.class_weights = class_weights(source, config)
        seed_at(config.seed)
        model = build_network(config, len(source.classes))
        check_crop(config, len(source.classes), config.batch_size // world_size())
        if config.backbone_weights:
            try:
                load_backbone(model, config.backbone_weights)
            except TypeError as error:  # the model has no such backbone
                raise ValueError(error) from error
            if model.in_channels != 3:
                self.notes.append(
                    "the backbone's first convolution, over three channels in "
                    f"{config.backbone_weights}, is spread over {model.in_channels}"
                )
        self.memory_format = torch.contiguous_format if config.contiguous else torch.channels_last
        self.model = model.to(self.device, memory_format=self.memory_format)
        self.criterion = Loss(
            config.loss, self.class_weights, IGNORE, getattr(model, "align_corners", False)
        ).to(self.device)
        self.optimizer = build_optimizer(
            config.optimizer,
            parameter_groups(model, config.backbone_lr),
            config.lr,
            config.weight_decay,
            config.momentum,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.fp16)
        self.average = None
        if config.ema:
            average = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
            self.average = torch.optim.swa_utils.AveragedModel(
                model, multi_avg_fn=average, use_buffers=True
            )
        self.trained = trained_by_all(self.model, config, self.device)
        self.out = Path(config.out)
        if rank() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.out, config.tensorboard) if rank() == 0 else None
        self.epoch = 0  # the epoch under way
        self.step = 0  # its finished steps
        self.loss_sum = 0.0  # over these steps
        self.best = -1.0  # validation mIoU
        self.history: list[dict[str, float]] = []

    def _check_batch(self) -> None:
        batch, images = self.config.batch_size, len(self.train_set)
        if batch % world_size() or batch // world_size() < self.config.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of the {world_size()} processes, with at least "
                f"{self.config.accumulate} (accumulate) pictures for each; got {batch}"
            )
        if batch > images:
            self.notes.append(
                f"a batch of {batch} is more than the pictures to train on, {images}: they come "
                "again in it, changed at random each time"
            )

    def save(self) -> None:
        """Writes the whole state to ``OUT/last.pt``."""
        if rank() > 0:
            return
        state = {
            "config": settings(self.config),
            "classes": list(self.source.classes.names),
            "pictures": names_of(self.source.parts),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in POSITION},
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        checkpoint.save(state, self.out / "last.pt")

    def resume(self) -> None:
        """Reads the state that ``save`` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file cannot be read or does not fit the model.
            ValueError: a setting that changes the results differs from the saved run's.
        """
        path = self.out / "last.pt"
        names, pictures = self.source.classes.names, names_of(self.source.parts)
        state = load_state(path, self.config, names, pictures)
        checkpoint.load_state_dict(self.model, state["model"], source=str(path))
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            checkpoint.load_state_dict(self.average, state["average"], source=str(path))
        for name in POSITION:
            setattr(self, name, state[name])
        if self.epoch >= self.config.epochs:
            self.notes.append(
                f"the run has ended after {self.epoch} epochs, and epochs is {self.config.epochs}"
            )

    def run(self, stop: StopSignal) -> None:
        """Trains to the last epoch.

        Raises:
            Interrupted: a signal came; the state has been saved.
            FloatingPointError: the loss is no longer finite; the saved state is an earlier one.
            ImageError: a picture can no longer be read.
            TrainingError: a worker or another process has ended; the saved state is an earlier one.
        """
        self._write_settings()
        with failures_in_a_line(self.out / "last.pt"):
            while self.epoch < self.config.epochs:
                self._run_epoch(stop)

    def _write_settings(self) -> None:
        if rank() == 0:
            shown = {k: v for k, v in settings(self.config).items() if v not in (None, "", [], {})}
            for name, contents in (("config", shown), ("split", names_of(self.source.parts))):
                self.log.write_json(f"{name}.json", contents)

    def _run_epoch(self, stop: StopSignal) -> None:
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
        if rank() == 0:
            print(json.dumps(without_nan(record)), flush=True)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        self.save()
        if self.log is not None:
            self.log.write(self.history)

    def _train_epoch(self, stop: StopSignal) -> None:
        self.model.train()
        if self.config.freeze_bn:
            frozen_batch_norms(self.model)
        self.train_set.set_epoch(self.epoch)
        # The order depends on seed and epoch alone, so that a resumed epoch can skip its steps.
        order = epoch_order(len(self.train_set), self.samples, self.config.seed, self.epoch)
        batches = Batches(order[self.step * self.config.batch_size :], self.config.batch_size)
        loaded = loader(self.train_set, batches, self.config.workers, self.device.type == "cuda")
        left = self.steps * (self.config.epochs - self.epoch) - self.step
        progress = Progress(self.config.batch_size, left, self.history)
        bar = tqdm(
            loaded,
            desc=f"epoch {self.epoch + 1}/{self.config.epochs}",
            total=self.steps,
            initial=self.step,
            leave=False,
            mininterval=1,
            disable=rank() > 0,
        )
        for image, label in bar:
            loss = self._train_step(image, label)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at epoch {self.epoch + 1}, step {self.step + 1}; "
                    f"start again with a lower --lr than {self.config.lr}"
                )
            self.step += 1
            self.loss_sum += loss
            bar.set_postfix_str(progress.text(loss), refresh=False)
            self._check(stop)

    def _check(self, stop: StopSignal) -> None:
        """Raises Interrupted in all processes at the same step, if a signal came to any."""
        if not is_distributed():
            stop.check()
        elif any_of_all(stop.received is not None, self.device):
            raise Interrupted("SIGTERM" if stop.received is None else stop.received.name)

    def _train_step(self, image: Tensor, label: Tensor) -> float:
        """Moves the weights by a batch, this process's part of which is given; returns its loss."""
        seed_at(self.config.seed, self.epoch, self.step, *([rank()] if rank() else []))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["lr_factor"]
        image = image.to(self.device, memory_format=self.memory_format, non_blocking=True)
        label = label.to(self.device, non_blocking=True)
        self.criterion.measure(label)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device)
        parts = self.config.accumulate
        pairs = list(zip(image.chunk(parts), label.chunk(parts), strict=True))
        for number, (x, target) in enumerate(pairs, 1):
            with self._no_sync(number < len(pairs)), self._autocast():
                loss = self.trained(x, target=target, criterion=self.criterion)
            with self._no_sync(number < len(pairs)):
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return global_sum(total).item() / world_size()

    def _no_sync(self, waits: bool) -> contextlib.AbstractContextManager[None]:
        """Keeps the gradients of all parts of a batch but the last from being exchanged."""
        return self.trained.no_sync() if waits and is_distributed() else contextlib.nullcontext()

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.config.fp16 else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.config.fp16 or self.config.bf16)

    def learning_rate(self) -> float:
        """Returns the rate of the next step."""
        steps = self.config.epochs * self.steps
        done = (self.epoch * self.steps + self.step) / steps
        share = rate_at(done, 1 / steps, self.config.schedule, self.config.warmup)
        return self.config.lr * share

    def _evaluate_and_keep_best(self, stop: StopSignal) -> dict[str, float]:
        model = self.model if self.average is None else self.average.module
        matrix = evaluate(
            model,
            self.val_set,
            bf16=self.config.bf16,
            device=self.device,
            memory_format=self.memory_format,
            on_image=(lambda: None) if is_distributed() else stop.check,
        )
        if matrix.mean_iou() > self.best or (self.best < 0 and math.isnan(matrix.mean_iou())):
            self._keep(model, matrix)
        if self.log is not None:
            self.log.write_picture("samples.png", sample_sheet(model, self.val_set, self.device))
        return scores(matrix)

    def _keep(self, model: torch.nn.Module, matrix: ConfusionMatrix) -> None:
        if not math.isnan(matrix.mean_iou()):
            self.best = matrix.mean_iou()
        if rank() == 0:
            metadata = metadata_of(self.config, self.source, self.epoch + 1, scores(matrix))
            checkpoint.save_model(self.out / "best.pt", model, metadata)
