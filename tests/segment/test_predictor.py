"""Tiles, scales, flips and the CRF of a predictor."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastseg.segment.predictor import Predictor
from fastseg.segment.segmenter import Segmenter
from fastseg.segment.tiles import starts, tiled, window

CPU = torch.device("cpu")


class Blur(torch.nn.Module):
    """A network that sees `reach` pixels around each, as all of a tile's inside can."""

    reach = 3

    def forward(self, x):
        kernel = torch.arange(1.0, 3 * 49 * 2 + 1).view(2, 3, 7, 7).sin()
        return F.conv2d(x, kernel, padding=self.reach)


def segmenter(network, short_side):
    palette = [(0, 0, 0), (255, 0, 0)]
    return Segmenter(network, "blur", ["a", "b"], palette, [0.5] * 3, [0.25] * 3, "RGB", short_side)


def picture(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_cover_a_side_and_overlap(length, tile):
    found = starts(length, tile)
    assert found[0] == 0
    assert found[-1] == max(0, length - tile)
    gaps = [b - a for a, b in pairwise(found)]
    assert all(0 < gap <= tile * 0.75 + 1 for gap in gaps)


@pytest.mark.parametrize("size", [(40, 50), (100, 130), (33, 200)])
def test_tiles_are_the_whole_away_from_their_borders(size):
    """Where all tiles that cover a pixel see what it depends on, blending changes nothing."""
    x, tile, reach = torch.randn(1, 3, *size), 48, Blur.reach
    network = Blur()
    got, expected = tiled(network, x, tile), network(x)
    assert got.shape == expected.shape
    seen = []
    for length in size:
        sides = torch.ones(length, dtype=torch.bool)
        for start in starts(length, tile):
            end = min(length, start + tile)
            if start > 0:
                sides[start : start + reach] = False
            if end < length:
                sides[end - reach : end] = False
        seen.append(sides)
    inside = seen[0][:, None] & seen[1][None]
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(got[..., inside], expected[..., inside], rtol=1e-4, atol=1e-4)
    if max(size) <= tile:
        assert inside.all()


def test_a_windows_weight_falls_towards_its_border():
    weights = window((32, 40), CPU)
    assert weights.shape == (32, 40)
    assert weights.min() == weights[0, 0] == 1
    assert weights[16, 20] == weights.max()


def test_bands_give_the_classes_of_the_whole():
    photo = picture(150, 90)
    tiles = Predictor(segmenter(Blur(), 90), CPU, tile=48)
    whole = Predictor(segmenter(Blur(), 90), CPU, tile=1024)
    assert tiles.segmenter.input_size(photo) == (90, 150)
    (banded,), (expected,) = tiles.labels([photo]), whole.labels([photo])
    assert banded.shape == expected.shape == (90, 150)
    assert (banded == expected).mean() > 0.97
    logits = tiles.scores([photo])[0]
    np.testing.assert_array_equal(banded, logits.argmax(1)[0])


def test_scales_and_flips_are_averaged():
    photo = picture(60, 40)
    plain = segmenter(Blur(), 40)
    x = plain.prepare(photo)
    expected = torch.zeros(1, 2, 40, 60)
    for scale in (1.0, 0.5):
        size = (round(40 * scale), round(60 * scale))
        small = x if scale == 1 else F.interpolate(x, size, mode="bilinear", antialias=True)
        for flip in (False, True):
            logits = Blur()(small.flip(-1) if flip else small)
            q = F.interpolate(logits, (40, 60), mode="bilinear").softmax(1)
            expected += (q.flip(-1) if flip else q) / 4
    (got,) = Predictor(plain, CPU, scales=(1.0, 0.5), flip=True).scores([photo])
    torch.testing.assert_close(got.exp(), expected, rtol=1e-4, atol=1e-5)


def test_one_scale_gives_the_networks_logits():
    photo = picture(60, 40)
    plain = segmenter(Blur(), 40)
    (got,) = Predictor(plain, CPU).scores([photo])
    assert torch.equal(got, plain(plain.prepare(photo)))


def test_the_crf_refines_at_the_pictures_size():
    photo = picture(60, 40)
    (refined,) = Predictor(segmenter(Blur(), 20), CPU, crf=True).scores([photo])
    assert refined.shape == (1, 2, 40, 60)
    torch.testing.assert_close(refined.exp().sum(1), torch.ones(1, 40, 60), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (1, 1), (1000, 10), (33, 33)])
def test_the_inputs_size_is_known_before_it_is_made(size):
    plain = segmenter(Blur(), 32)
    assert plain.input_size(picture(*size)) == tuple(plain.prepare(picture(*size)).shape[-2:])
