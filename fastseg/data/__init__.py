"""Data sets, their augmentation, and pictures."""

from fastseg.data.augmentation import Augmentation, TrainTransform
from fastseg.data.camvid import (
    CAMVID_CLASSES,
    CAMVID_IGNORE,
    CAMVID_PALETTE,
    CamVid,
    class_counts,
    median_frequency_weights,
)
from fastseg.data.camvid_check import NotCamVidError, check_is_camvid
from fastseg.data.channel_image import ChannelImage
from fastseg.data.class_files import read_classes
from fastseg.data.classes import Classes
from fastseg.data.folder import PictureFolder
from fastseg.data.picture_format import PictureFormat
from fastseg.data.source import DataOptions, DataSource, open_data
from fastseg.data.transforms import EvalTransform, normalise, resize_to_height

__all__ = [
    "CAMVID_CLASSES",
    "CAMVID_IGNORE",
    "CAMVID_PALETTE",
    "Augmentation",
    "CamVid",
    "ChannelImage",
    "Classes",
    "DataOptions",
    "DataSource",
    "EvalTransform",
    "NotCamVidError",
    "PictureFolder",
    "PictureFormat",
    "TrainTransform",
    "check_is_camvid",
    "class_counts",
    "median_frequency_weights",
    "normalise",
    "open_data",
    "read_classes",
    "resize_to_height",
]
