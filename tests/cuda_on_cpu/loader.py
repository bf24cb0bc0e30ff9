"""Loads the library and registers its ops as torch.ops.fastseg_cuda_on_cpu."""

from __future__ import annotations

import ctypes
import functools
import os

import torch

import fastseg  # noqa: F401  (defines the schemas)

from .build import library

SANITIZE = os.environ.get("FASTSEG_TEST_SANITIZE") == "1"
NAMES = (
    "confusion_matrix",
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
def load() -> tuple[ctypes.CDLL, torch.library.Library]:
    """Once for each process; with AddressSanitizer if FASTSEG_TEST_SANITIZE is 1."""
    definitions = torch.library.Library("fastseg_cuda_on_cpu", "DEF")
    for name in NAMES:
        schema = str(getattr(torch.ops.fastseg, name).default._schema)
        definitions.define(schema.removeprefix("fastseg::"))
    path = str(library(sanitize=SANITIZE))
    torch.ops.load_library(path)
    return ctypes.CDLL(path), definitions
