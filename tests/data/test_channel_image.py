"""Pictures of channels are changed as Pillow changes grey ones, and shown in RGB."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.data import Augmentation, ChannelImage, EvalTransform, TrainTransform, normalise
from fastseg.data.augmentation import NOTHING
from tests.data.many_channels import pixels_of
from tests.zoo.other_models import import_or_skip

BILINEAR, FLIP = Image.Resampling.BILINEAR, Image.Transpose.FLIP_LEFT_RIGHT
CHANGES = {
    "smaller": lambda p, k: p.resize((13, 11), BILINEAR),
    "larger": lambda p, k: p.resize((60, 70)),
    "flipped": lambda p, k: p.transpose(FLIP),
    "cropped": lambda p, k: p.crop((3, 5, 20, 30)),
}
MOVES = Augmentation((0.5, 2.0), 0.5, 0.5, 30.0, colour=0.0)
MEAN, STD = (1000.0, 990.0, 1010.0, 1200.0, 1005.0), (60.0, 61.0, 59.0, 900.0, 58.0)


@pytest.fixture(params=["plain", "torchvision"])
def augmenter(request):
    if request.param == "torchvision":
        import_or_skip("torchvision")
    return request.param


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_channel_changes_as_a_grey_picture_does(change):
    pixels = pixels_of(0)
    found = change(ChannelImage(pixels), 0)
    for k in range(5):
        grey = change(Image.fromarray(pixels[..., k].astype(np.float32)), k)
        np.testing.assert_array_equal(found.pixels[..., k], np.asarray(grey))


def test_turned_pictures_show_the_colour_of_their_channel_outside():
    found = ChannelImage(pixels_of(0)).rotate(45, BILINEAR, fillcolor=(1.0, 2.0, 3.0, 4.0, 5.0))
    assert found.pixels[0, 0].tolist() == [1, 2, 3, 4, 5]


def test_normalised():
    pixels = pixels_of(0).astype(np.float32)
    pixels[2, 3, 1], pixels[4, 5, 2] = np.nan, np.inf
    x = normalise(ChannelImage(pixels), MEAN, STD)
    assert (x.shape, x.dtype) == ((5, 40, 48), torch.float32)
    np.testing.assert_allclose(x[3], (pixels[..., 3] - MEAN[3]) / STD[3], rtol=1e-5, atol=1e-5)
    assert x[1, 2, 3] == x[2, 4, 5] == 0, "values that are not finite count as the mean"
    with pytest.raises(ValueError, match="must have the picture's 5 channels, got 3 and 3"):
        normalise(ChannelImage(pixels))


def test_previews():
    bytes_ = (pixels_of(0) % 256).astype(np.uint8)
    np.testing.assert_array_equal(ChannelImage(bytes_).preview(), bytes_[..., :3])
    grey = np.asarray(ChannelImage(bytes_[..., :2]).preview())
    np.testing.assert_array_equal(grey, np.repeat(bytes_[..., :1], 3, -1))
    wide = np.linspace(500, 700, 10000).reshape(100, 100, 1).astype(np.uint16)
    shown = np.asarray(ChannelImage(wide).preview())[..., 0].ravel()
    assert shown[199] == 0 < shown[300], "two of a hundred are black"
    assert shown[9700] < 255 == shown[9801]
    flat = np.full((4, 4, 3), 7.0, np.float32)
    flat[0, 0, 0] = np.nan
    assert not np.asarray(ChannelImage(flat).preview()).any()
    flat[1, 1, 1] = 9
    assert np.asarray(ChannelImage(flat).preview())[1, 1, 1] == 255, "one other value is seen"


def test_evaluation_resizes_as_training_does():
    image = ChannelImage(pixels_of(0))
    label = Image.new("L", image.size)
    x, ids = EvalTransform(20, MEAN, STD)(image, label, np.random.default_rng(0))
    assert (x.shape, ids.shape) == ((5, 20, 24), (40, 48))
    same, _ = TrainTransform(20, (20, 24), 255, NOTHING, mean=MEAN, std=STD)(
        image, label, np.random.default_rng(0)
    )
    assert torch.equal(x, same)


def test_picture_and_mask_move_alike(augmenter):
    ids = np.random.default_rng(0).integers(0, 2, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
    image = ChannelImage(np.stack([1000.0 * ids + k for k in range(5)], -1).astype(np.float32))
    transform = TrainTransform(48, (48, 64), 255, MOVES, augmenter, mean=MEAN, std=STD)
    x, label = transform(image, Image.fromarray(ids), np.random.default_rng(3))
    assert x.shape == (5, 48, 64)
    assert set(label.unique().tolist()) <= {0, 1, 255}, "masks are not interpolated"
    inside = label != 255
    shown = (x[4] * STD[4] + MEAN[4] - 4) / 1000
    assert ((shown - label).abs()[inside] < 0.1).float().mean() > 0.75
    again, _ = transform(image, Image.fromarray(ids), np.random.default_rng(3))
    assert torch.equal(x, again)


def test_outside_of_a_turned_picture_is_the_mean(augmenter):
    table = Augmentation((1.0, 1.0), 0.0, 0.0, 45.0, 0.0)
    transform = TrainTransform(40, (40, 48), 255, table, augmenter, mean=MEAN, std=STD)
    image = ChannelImage(pixels_of(0) + np.uint16(5000))
    x, label = transform(image, Image.new("L", image.size), np.random.default_rng(1))
    assert (x[:, 0, 0].abs() < 1e-4).all()
    assert label[0, 0] == 255


def test_colour_is_one_factor_and_one_shift_of_all_channels(augmenter):
    """Saturation, which only colours have, is left out."""
    image = ChannelImage(pixels_of(0))
    label = Image.new("L", image.size)
    found = []
    for colour in (0.0, 0.4):
        table = Augmentation((1.0, 1.0), 0.0, colour=colour)
        transform = TrainTransform(40, (40, 48), 255, table, augmenter, mean=MEAN, std=STD)
        found.append(transform(image, label, np.random.default_rng(5))[0].double())
    before, after = found
    slope, shift = np.polyfit(before.ravel(), after.ravel(), 1)
    assert 0.6 <= slope <= 1.4
    assert -0.4 <= shift <= 0.4
    assert abs(slope - 1) > 0.01 < abs(shift)
    torch.testing.assert_close(after, slope * before + shift, rtol=1e-4, atol=1e-4)


def test_elastic():
    import_or_skip("torchvision")
    table = Augmentation((1.0, 1.0), 0.0, colour=0.0, elastic=60.0)
    transform = TrainTransform(40, (40, 48), 255, table, "torchvision", mean=MEAN, std=STD)
    image = ChannelImage(pixels_of(0))
    x, _ = transform(image, Image.new("L", image.size), np.random.default_rng(1))
    assert x.shape == (5, 40, 48)
    assert not torch.equal(x, normalise(image, MEAN, STD))
