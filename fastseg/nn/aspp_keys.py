"""The names that other projects' checkpoints have for the parts of ASPP."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Where the ASPP is in a whole model, the first that is there; "" for a checkpoint of it alone.
PREFIXES = {
    "torchvision": ("classifier.0.", ""),
    "vainf": ("classifier.aspp.", "classifier.classifier.0.", ""),
    "smp": ("decoder.aspp.0.", "decoder.aspp.", ""),
    "mmseg": ("decode_head.", ""),
    "kazuto": ("base.aspp.", "aspp.", ""),
}
# What names become, {pool} being the number of the pooling branch; others are other modules'.
RENAMES = {
    "torchvision": {r"((?:convs|project)\..*)": r"\1"},
    "vainf": {r"((?:convs|project)\..*)": r"\1"},
    "smp": {r"((?:convs|project)\..*)": r"\1"},
    "mmseg": {
        r"aspp_modules\.(\d+)\.conv\.(.*)": r"convs.\1.0.\2",
        r"aspp_modules\.(\d+)\.bn\.(.*)": r"convs.\1.1.\2",
        r"image_pool\.1\.conv\.(.*)": r"convs.{pool}.1.\1",
        r"image_pool\.1\.bn\.(.*)": r"convs.{pool}.2.\1",
        r"bottleneck\.conv\.(.*)": r"project.0.\1",
        r"bottleneck\.bn\.(.*)": r"project.1.\1",
    },
    "kazuto": {r"(?:stages\.)?(c\d+\.(?:weight|bias))": r"\1"},
}


def convert_aspp_keys(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The ASPP of another project's model, with the keys of :class:`fastseg.nn.ASPP`.

    Args:
        state_dict: of a whole model or of its ASPP.
        source: "torchvision" (DeepLab v3), "vainf" (DeepLabV3Plus-Pytorch, both versions), "smp"
            (segmentation_models_pytorch, both versions), "mmseg" (mmsegmentation's ASPPHead, with
            project_kernel_size 3: its first projected channels are the pooling's, which come last
            here) or "kazuto" (DeepLab v2, for :class:`fastseg.nn.ASPPSum`).

    Returns:
        What ``load_state_dict`` takes; the tensors are not copied unless their channels move.

    Raises:
        ValueError: an unknown source, or no ASPP in the state_dict.
    """
    if source not in PREFIXES:
        raise ValueError(f"source must be one of {', '.join(PREFIXES)}, got {source!r}")
    for prefix in PREFIXES[source]:
        found = {
            new: t
            for key, t in state_dict.items()
            if key.startswith(prefix) and (new := _rename(key[len(prefix) :], RENAMES[source]))
        }
        if found:
            return _order_channels(found) if source == "mmseg" else found
    raise ValueError(f"no ASPP of {source} among the keys")


def _rename(key: str, renames: Mapping[str, str]) -> str | None:
    for pattern, new in renames.items():
        if match := re.fullmatch(pattern, key):
            return match.expand(new)
    return None


def _order_channels(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The pooling branch, first in mmsegmentation, last."""
    branches = {key.split(".")[1] for key in state_dict if re.match(r"convs\.\d", key)}
    renamed = {k.replace("{pool}", str(len(branches))): t for k, t in state_dict.items()}
    n = renamed[f"convs.{len(branches)}.1.weight"].shape[0]
    weight = renamed["project.0.weight"]
    renamed["project.0.weight"] = torch.cat((weight[:, n:], weight[:, :n]), 1)
    return renamed
