"""State_dicts of fastseg's own networks that were saved without their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastseg.models import build_model, list_models
from fastseg.zoo.fitting_options import fitting_changes
from fastseg.zoo.shapes import CLASSES, number_of_classes, options_of

LEAST_LIKENESS = 0.25
"""Share of the keys from which a network is tried: with other options it has some other keys."""

MOST_TRIED = 2
"""Number of networks that are tried."""


def likeness(builder: str, state: Mapping[str, Tensor]) -> float:
    """Returns the share of the keys, 0 to 1, that a builder's network has too."""
    if not any(key in state for key in CLASSES[builder]):
        return 0.0
    try:
        with torch.device("meta"):
            own = build_model(builder, **told_options(builder, state, "")).state_dict()
    except (TypeError, ValueError):  # the shapes tell another builder's options
        return 0.0
    return sum(key in own for key in state) / len(state)


def told_options(builder: str, state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Returns the options that keys and shapes tell, with `num_classes`.

    Raises:
        CheckpointError: no weight tells the classes; the error calls the state_dict `name`.
    """
    classes = number_of_classes(builder, state, name)
    return {"num_classes": classes, **options_of(builder, state)}


def how_to_load(state: Mapping[str, Tensor], path: Any) -> str:
    """Returns the text of a call that loads a state_dict; empty if it fits no network."""
    ranked = sorted(list_models(), key=lambda name: likeness(name, state), reverse=True)
    for builder in ranked[:MOST_TRIED]:
        if likeness(builder, state) < LEAST_LIKENESS:
            break
        changes = fitting_changes(builder, told_options(builder, state, ""), state)
        if changes is not None:
            texts = [f"{key}={value!r}" for key, value in changes.items()]
            return f"from_checkpoint({', '.join([repr(str(path)), repr(builder), *texts])})"
    return ""
