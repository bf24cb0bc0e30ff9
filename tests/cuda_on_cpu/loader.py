"""Loads a library and registers its ops: as torch.ops.fastseg_cuda_on_cpu, unless it is traced."""

from __future__ import annotations

import ctypes
import functools
import os

import torch

import fastseg  # noqa: F401  (defines the schemas)

from .build import VARIANTS, library

SANITIZE = os.environ.get("FASTSEG_TEST_SANITIZE") == "1"
NAMES = (
    "confusion_matrix",
    "depthwise_conv2d",
    "depthwise_conv2d_input_grad",
    "depthwise_conv2d_weight_grad",
    "distance_transform",
    "lattice_mean_field",
    "max_pool2d",
    "batch_norm_relu_max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "pack_codes",
    "permutohedral_filter",
    "permutohedral_filter_backward",
    "permutohedral_lattice",
    "pixel_adaptive_refinement",
    "pixel_adaptive_refinement_backward",
    "spatial_gaussian_filter",
    "upsample_argmax",
    "upsample_argmax_confidence",
    "upsample_confusion_matrix",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
    "upsample_softmax_sums",
    "upsample_softmax_sums_backward",
)


@functools.cache
def load(variant: str | None = None) -> tuple[ctypes.CDLL, torch.library.Library]:
    """The library and its ops, once for each process.

    Args:
        variant: a key of ``VARIANTS``. Default: "sanitized" if FASTSEG_TEST_SANITIZE is 1, else
            "plain".
    """
    variant = variant or ("sanitized" if SANITIZE else "plain")
    definitions = torch.library.Library(VARIANTS[variant][-1], "DEF")
    for name in NAMES:
        schema = str(getattr(torch.ops.fastseg, name).default._schema)
        definitions.define(schema.removeprefix("fastseg::"))
    path = str(library(variant))
    torch.ops.load_library(path)
    return ctypes.CDLL(path), definitions
