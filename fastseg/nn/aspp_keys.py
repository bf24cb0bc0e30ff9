"""Conversion of the keys that other projects' checkpoints have for the parts of ASPP."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")
Replacement = str | Callable[["re.Match[str]"], str]
"""The replacement of a name: a template for re.Match.expand, or a function of the match."""

PREFIXES = {
    "torchvision": ("classifier.0.", ""),
    "vainf": ("classifier.aspp.", "classifier.classifier.0.", ""),
    "smp": ("decoder.aspp.0.", "decoder.aspp.", ""),
    "mmseg": ("decode_head.", ""),
    "kazuto": ("base.aspp.", "aspp.", ""),
}
"""Prefixes of the ASPP's keys in a whole model, of which the first that fits counts; "" is for a
checkpoint of the ASPP alone."""

RENAMES = {
    "torchvision": {r"((?:convs|project)\..*)": r"\1"},
    "vainf": {
        r"(convs\.\d+\.0)\.body\.(.*)": r"\1.\2",  # a convolution that was made separable
        r"((?:convs|project)\..*)": r"\1",
    },
    "smp": {r"((?:convs|project)\..*)": r"\1"},
    "mmseg": {
        r"aspp_modules\.(\d+)\.conv\.(.*)": r"convs.\1.0.\2",
        r"aspp_modules\.(\d+)\.bn\.(.*)": r"convs.\1.1.\2",
        # The branches of its v3+ are separable.
        r"aspp_modules\.(\d+)\.depthwise_conv\.conv\.(.*)": r"convs.\1.0.0.0.\2",
        r"aspp_modules\.(\d+)\.depthwise_conv\.bn\.(.*)": r"convs.\1.0.0.1.\2",
        r"aspp_modules\.(\d+)\.pointwise_conv\.conv\.(.*)": r"convs.\1.0.1.\2",
        r"aspp_modules\.(\d+)\.pointwise_conv\.bn\.(.*)": r"convs.\1.1.\2",
        r"image_pool\.1\.conv\.(.*)": r"convs.{pool}.1.\1",
        r"image_pool\.1\.bn\.(.*)": r"convs.{pool}.2.\1",
        r"bottleneck\.conv\.(.*)": r"project.0.\1",
        r"bottleneck\.bn\.(.*)": r"project.1.\1",
    },
    "kazuto": {r"(?:stages\.)?(c\d+\.(?:weight|bias))": r"\1"},
}
"""Replacements of names by patterns, in which {pool} is the number of the pooling branch. Names
that fit no pattern belong to other modules."""


def convert_aspp_keys(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the ASPP of another project's model, with the keys of :class:`fastseg.nn.ASPP`.

    Args:
        state_dict: the state_dict of a whole model or of its ASPP.
        source: "torchvision" (DeepLab v3), "vainf" (DeepLabV3Plus-Pytorch, both versions), "smp"
            (segmentation_models_pytorch, both versions), "mmseg" (mmsegmentation's ASPPHead, with
            project_kernel_size 3, or that of its v3+ with depthwise_batch_norm too: its first
            projected channels are the pooling's, which come last here) or "kazuto" (DeepLab v2, for
            :class:`fastseg.nn.ASPPSum`).

    Returns:
        A state_dict for ``load_state_dict``. Tensors are copied only where their channels move.

    Raises:
        ValueError: an unknown source, or no ASPP in the state_dict.
    """
    if source not in PREFIXES:
        raise ValueError(f"source must be one of {', '.join(PREFIXES)}, got {source!r}")
    for prefix in PREFIXES[source]:
        found = {
            new: t
            for key, t in state_dict.items()
            if key.startswith(prefix) and (new := rename(key[len(prefix) :], RENAMES[source]))
        }
        if found:
            return pooling_last(number_pooling(found)) if source == "mmseg" else found
    raise ValueError(f"no ASPP of {source} among the keys")


def number_pooling(names: Mapping[str, T]) -> dict[str, T]:
    """Replaces {pool} by the pooling branch's number, which is that of the branches before it."""
    branches: dict[str, set[str]] = {}
    for key in names:
        if match := re.match(r"(.*?convs\.)(\d+)\.", key):
            branches.setdefault(match[1], set()).add(match[2])

    def numbered(key: str) -> str:
        before, pool, after = key.partition("{pool}")
        return f"{before}{len(branches.get(before, ()))}{after}" if pool else key

    return {numbered(key): value for key, value in names.items()}


def pooling_last(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Moves the pooling's channels, the projection's first, to the end, where fastseg has them.

    Args:
        state: a state_dict with the keys of :class:`fastseg.nn.ASPP` after the prefix.
        prefix: the prefix of the ASPP's keys.
    """
    pooling = re.compile(re.escape(prefix) + r"convs\.\d+\.1\.weight")
    channels = [t.shape[0] for key, t in state.items() if pooling.fullmatch(key) and t.ndim == 4]
    project = f"{prefix}project.0.weight"
    if not channels or project not in state:
        return dict(state)
    return {**state, project: state[project].roll(-channels[0], 1)}


def rename(key: str, renames: Mapping[str, Replacement]) -> str | None:
    """Renames a key by the first pattern that it matches in full; None if there is none."""
    for pattern, new in renames.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(new) if isinstance(new, str) else new(match)
    return None
