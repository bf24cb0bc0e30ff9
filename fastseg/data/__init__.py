"""Data sets, their augmentation, and pictures."""

from fastseg.data.camvid import (
    CAMVID_CLASSES,
    CAMVID_IGNORE,
    CAMVID_PALETTE,
    CamVid,
    class_counts,
    median_frequency_weights,
)
from fastseg.data.camvid_check import NotCamVidError, check_is_camvid
from fastseg.data.transforms import EvalTransform, TrainTransform, normalise, resize_to_height

__all__ = [
    "CAMVID_CLASSES",
    "CAMVID_IGNORE",
    "CAMVID_PALETTE",
    "CamVid",
    "EvalTransform",
    "NotCamVidError",
    "TrainTransform",
    "check_is_camvid",
    "class_counts",
    "median_frequency_weights",
    "normalise",
    "resize_to_height",
]
