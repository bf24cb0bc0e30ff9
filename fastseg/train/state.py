"""The state of a run in a file: what is saved, and whether it is that of the same run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from fastseg.data.camvid import median_frequency_weights
from fastseg.data.source import DataSource
from fastseg.data.survey import class_counts
from fastseg.train.config import MAY_CHANGE, Config
from fastseg.train.schedule import inverse_square_root_weights
from fastseg.zoo import checkpoint

POSITION = ("epoch", "step", "loss_sum", "best", "history")
"""Attributes of a trainer that say how far a run is."""

STATE = {"config", "model", "optimizer", *POSITION}
"""Keys that a saved run must have to be resumed. Random numbers need none, see randomness.py."""


def settings(config: Config) -> dict[str, Any]:
    """Returns the settings as plain lists, numbers and texts."""
    return json.loads(json.dumps(asdict(config)))


def load_state(
    path: Path, config: Config, classes: Sequence[str], pictures: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Reads the state of a run, and checks that it is one of the same settings and data.

    Args:
        path: the file.
        config: the settings now.
        classes: the classes' names now.
        pictures: the names of the pictures now, by part.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be read, or is no state of a run.
        ValueError: what changes the results differs from the saved run's.
    """
    state = checkpoint.load(path)
    if not isinstance(state, dict) or not state.keys() >= STATE:
        raise checkpoint.CheckpointError(f"{path} is not the state of a training run")
    defaults = {f.name: f.default for f in fields(Config)}  # of settings newer than the file
    saved = json.loads(json.dumps({**defaults, **state["config"]}))
    changed = [
        f"{name} {saved[name]} is now {value}"
        for name, value in settings(config).items()
        if name not in MAY_CHANGE and saved[name] != value
    ]
    for part, names in state.get("pictures", {}).items():
        changed += _other_pictures(part, names, pictures.get(part, []))
    if list(state.get("classes", classes)) != list(classes):
        changed.append(f"classes {', '.join(state['classes'])} are now {', '.join(classes)}")
    if changed:
        raise ValueError(f"the run of {path} had other settings: {', '.join(changed)}")
    return state


def _other_pictures(part: str, saved: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    """Yields how the pictures of a part differ from those of a saved run."""
    kind = {"train": "training", "val": "validation"}.get(part, part)
    if len(saved) != len(now):
        yield f"{len(saved)} {kind} images are now {len(now)}"
    elif list(saved) != list(now):
        old, new = next((a, b) for a, b in zip(saved, now, strict=True) if a != b)
        yield f"{kind} image {old} is now {new}"


def class_weights(source: DataSource, config: Config) -> Tensor | None:
    """Returns the weights of the classes in the loss, float32 (C,); None for equal ones."""
    if config.class_weights == "none":
        return None
    pixels, present = class_counts(source.surveyed_part("train"), source.classes)
    if config.class_weights == "median":
        return median_frequency_weights(pixels, present) ** config.balance
    return inverse_square_root_weights(pixels) ** config.balance


def metadata_of(
    config: Config, source: DataSource, epochs: int, scores: dict[str, float]
) -> dict[str, Any]:
    """Returns what a weights file says of a run: how to build and feed its model, and of what.

    Args:
        config: the settings.
        source: the data.
        epochs: the number of finished epochs.
        scores: the validation scores.
    """
    images = len(source.parts["train"])
    data = f"{source.name}, {len(source.classes)} classes, {images} training images"
    licence = source.classes.licence
    return {
        "model": config.model,
        "options": config.model_options,
        **source.classes.as_metadata(),
        **{name: list(values) for name, values in config.normalisation.items()},
        **({} if source.form is None else source.form.as_metadata()),
        "short_side": config.height,
        "crop": list(config.crop),
        "epochs": epochs,
        "val": scores,
        "data": data + (f"; {licence}" if licence else ""),
    }
