"""Trained weights of other projects reproduce their figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastseg import from_checkpoint
from fastseg.metrics import ConfusionMatrix
from fastseg.models import unet
from fastseg.zoo import SOURCES


def voc_input(image, side):
    """At most `side` pixels long, of 16k + 1 pixels, from -1 to 1."""
    sides = image.shape[:2]
    sides = [min(side, round(s * side / max(sides) / 16) * 16 + 1) for s in sides]
    preprocessing = SOURCES["tensorflow"].preprocessing
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean) / std
    return F.interpolate(x, sides, mode="bilinear", align_corners=True)


def voc_confusion(folder, model, side):
    """Of the 12 images of the official validation set."""
    confusion = ConfusionMatrix(21, ignore_index=255)
    for name in (folder / "val.txt").read_text().split():
        (file,) = folder.glob(f"JPEGImages/{name}.*")
        image = np.array(Image.open(file).convert("RGB"))
        label = np.array(Image.open(folder / "SegmentationClass" / f"{name}.png"))
        with torch.inference_mode():
            logits = model(voc_input(image, side))
            logits = F.interpolate(logits, label.shape, mode="bilinear", align_corners=True)
        confusion.update(logits[0].argmax(0), torch.from_numpy(label))
    return confusion


def test_mobile_deeplab_reaches_its_figure_on_voc(shared_data):
    path = shared_data("weights", "deeplabv3_mobilenetv2_voc21_os16_dequant.pth")
    model = from_checkpoint(path)
    confusion = voc_confusion(shared_data("data", "voc22"), model, 513)
    assert round(confusion.mean_iou(), 3) == 0.662
    assert confusion.pixel_accuracy() > 0.925


@pytest.mark.parametrize(("style", "fits"), [("torchvision", True), ("paper", False)])
def test_weights_of_stride_8_fit_the_style_of_dilation_they_were_trained_with(
    style, fits, shared_data
):
    path = shared_data("weights", "deeplabv3_mobilenetv2_dm05_voc21_os8_fp32.pth")
    model = from_checkpoint(
        path,
        output_stride=8,
        dilation_style=style,
        backbone_options={"width_mult": 0.5, "round_nearest": 4},
    )
    accuracy = voc_confusion(shared_data("data", "voc22"), model, 257).pixel_accuracy()
    assert (accuracy > 0.85) == fits


def retina_unet(weights):
    """orobix's U-Net: the upsampled features come before the skip."""
    renamed = {}
    for key, tensor in weights.items():
        key = key.replace("bottom.", "down.2.").replace("outc.", "classifier.")
        for i in (0, 1):
            key = key.replace(f"up.{i}.", f"up.{i}.conv.")
        if key.startswith("up") and key.endswith("conv1.weight"):
            skip = tensor.shape[0]  # as many channels as the level has
            tensor = tensor.roll(skip, 1)
        renamed[key] = tensor
    model = unet(2, depth=2, width=32, upsampling="nearest", batch_norm=False, in_channels=1)
    model.load_state_dict(renamed)
    return model.eval()


def equalised(image, tiles=8, clip=2.0):
    """Zuiderveld's contrast-limited adaptive histogram equalisation of uint8, as OpenCV's."""
    sides = image.shape
    heights = [-(-side // tiles) for side in sides]
    missing = [h * tiles - side for h, side in zip(heights, sides, strict=True)]
    padded = np.pad(image, [(0, m) for m in missing], mode="reflect")
    pixels = heights[0] * heights[1]
    limit = max(int(clip * pixels / 256), 1)
    maps = np.empty((tiles, tiles, 256))
    for i, row in enumerate(np.split(padded, tiles, 0)):
        for j, tile in enumerate(np.split(row, tiles, 1)):
            counts = np.bincount(tile.ravel(), minlength=256)
            spread, rest = divmod(np.maximum(counts - limit, 0).sum(), 256)
            counts = np.minimum(counts, limit) + spread
            if rest:
                counts[:: max(256 // rest, 1)][:rest] += 1
            maps[i, j] = np.round(counts.cumsum() * 255 / pixels).clip(0, 255)

    def neighbours(axis):
        at = np.arange(sides[axis]) / heights[axis] - 0.5
        low = np.floor(at).astype(int)
        return [(low.clip(0, tiles - 1), 1 - at + low), ((low + 1).clip(0, tiles - 1), at - low)]

    total = 0
    for i, vertical in neighbours(0):
        for j, horizontal in neighbours(1):
            total = total + maps[i[:, None], j, image] * vertical[:, None] * horizontal
    return np.round(total).astype(np.uint8)


def area_under_curve(scores, positive):
    """Of the receiver operating characteristic, by ranks."""
    ranks = np.empty(len(scores))
    ranks[scores.argsort(kind="stable")] = np.arange(1, len(scores) + 1)
    n = int(positive.sum())
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n))


def retina_auc(folder, model, count):
    """Of the first `count` test images, in the field of view; 0.9773 of all 20."""

    def mask(kind, name):
        return np.asarray(Image.open(folder / kind / name).convert("L")) > 127

    files = sorted((folder / "test").glob("*.png"))
    luma = np.array([0.299, 0.587, 0.114])
    images = np.stack([np.asarray(Image.open(f).convert("RGB")) @ luma for f in files[:count]])
    gamma = ((np.arange(256) / 255) ** (1 / 1.2) * 255).astype(np.uint8)
    scores, vessels = [], []
    for file, image in zip(files, images, strict=False):
        image = (image - image.min()) / (image.max() - image.min()) * 255
        x = torch.from_numpy(gamma[equalised(image.astype(np.uint8))] / 255).float()
        with torch.inference_mode():
            p = model(x[None, None]).relu().softmax(1)[0, 1].numpy()
        view = mask("test_mask", file.name.replace("test", "test_mask"))
        scores.append(p[view])
        vessels.append(mask("test_manual1", file.name.replace("test", "manual1"))[view])
    return area_under_curve(np.concatenate(scores), np.concatenate(vessels))


def test_retina_unet_reaches_its_figure_on_drive(shared_data):
    model = retina_unet(
        torch.load(shared_data("weights", "unet_drive_retina.pth"), weights_only=True)
    )
    assert round(retina_auc(shared_data("data", "drive"), model, 2), 3) == 0.984
