"""The look at all pictures: its warnings, whoever's threads read them, and the memory it keeps."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fastseg.data.image import ImageWarning, is_turned, opened, read_image
from fastseg.data.masks import read_mask
from fastseg.data.pairs import Pair
from fastseg.data.picture_format import stored_kind
from fastseg.data.survey import survey
from tests.data import own_pictures as own


@pytest.fixture
def of_12_bits(tmp_path):
    """Pictures whose reading rests on a guess, and their masks."""
    pixels = np.linspace(0, 4000, 48 * 64).reshape(48, 64).astype(np.uint16)
    pairs = [Pair(f"{k}", tmp_path / f"i{k}.png", tmp_path / f"m{k}.png") for k in range(100)]
    for pair in pairs:
        Image.fromarray(pixels).save(pair.image)
        Image.new("L", (64, 48)).save(pair.mask)
    return pairs


def test_every_guess_is_told_in_order(of_12_bits):
    for _ in range(3):
        before = list(warnings.filters)
        with pytest.warns(ImageWarning, match="of 12 bits") as told:
            survey(of_12_bits)
        assert [str(w.message).partition(": ")[0] for w in told] == [
            str(pair.image) for pair in of_12_bits
        ]
        assert warnings.filters == before


def test_every_guess_of_threads_is_told(of_12_bits):
    files = [pair.image for pair in of_12_bits]
    with ThreadPoolExecutor(8) as pool, pytest.warns(ImageWarning) as told:
        list(pool.map(read_image, files))
    assert sorted(str(w.message).partition(": ")[0] for w in told) == sorted(map(str, files))


@pytest.mark.parametrize("read", [read_image, read_mask, is_turned, stored_kind])
def test_a_thread_changes_no_filter(tmp_path, monkeypatch, read):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    before, seen, load = list(warnings.filters), [], Image.open

    def watched(*arguments):
        seen.append(list(warnings.filters))
        return load(*arguments)

    monkeypatch.setattr(Image, "open", watched)
    thread = threading.Thread(target=read, args=(tmp_path / "a.png",))
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_picture_that_is_open_changes_no_filter(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    with opened(tmp_path / "a.png"):
        assert warnings.filters == before


def test_warnings_of_pillow_are_silent(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    pair = Pair("a", tmp_path / "a.png", tmp_path / "a.png")
    read_image(pair.image)
    survey([pair])
    assert not recwarn.list


@pytest.mark.parametrize("kind", [own.grey, own.in_colours])
def test_pixels_of_masks_are_not_kept(tmp_path, kind):
    ids = np.arange(48 * 64).reshape(48, 64) % 3
    kind(ids).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").places.nbytes <= 2 * ids.size
    (found,) = survey([Pair("a", tmp_path / "a.png", tmp_path / "a.png")])
    assert len(found.mask.values) == 3
    assert found.mask.places.size == 0
    assert found.mask.places.base is None
