import re

import numpy as np
import pytest
from PIL import Image

from fastseg.data.image import (
    ORIENTATION,
    ImageError,
    ImageWarning,
    check_writable,
    is_turned,
    read_image,
    read_labels,
    write_png,
)
from tests.cli.png_files import PALETTE, RGB, pgm, png, tiff


def read_back(tmp_path, image, suffix="png", **options):
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    return np.asarray(read_image(path)).astype(int)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[0, 32768, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[False, True]]), [0, 255]),
    ],
    ids=["8-bit", "16-bit", "1-bit"],
)
def test_grey_png(tmp_path, pixels, expected):
    pixels = read_back(tmp_path, Image.fromarray(pixels))
    np.testing.assert_array_equal(pixels[0], np.repeat(expected, 3).reshape(-1, 3))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([np.nan, 2.0, np.inf, 4.0, -np.inf], [0, 0, 255, 255, 0]),
        ([3.0, 3.0], [0, 0]),
        ([np.nan, np.nan], [0, 0]),
    ],
)
def test_float_tiff_is_stretched_to_its_finite_values(tmp_path, values, expected):
    pixels = read_back(tmp_path, Image.fromarray(np.array([values], np.float32)), "tiff")
    np.testing.assert_array_equal(pixels[0, :, 0], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.putpixel((1, 0), 1)
        pixels = read_back(tmp_path, image, transparency=0)
        expected = [[255] * 3, [10, 20, 30]]
    else:
        image = Image.new(mode, (2, 1))
        image.putpixel((1, 0), (9, 9, 9, 255) if mode == "RGBA" else (9, 255))
        pixels = read_back(tmp_path, image)
        expected = [[255] * 3, [9] * 3]
    np.testing.assert_array_equal(pixels[0], expected)


def test_cmyk_jpeg(tmp_path):
    pixels = read_back(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg", quality=95)
    red, green, blue = pixels.mean((0, 1))
    assert red > 240
    assert max(green, blue) < 15


def test_orientation_tag_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    image = Image.new("RGB", (2, 3))
    image.putpixel((0, 0), (255, 0, 0))
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    upright = read_image(path)
    assert upright.size == (3, 2)
    assert upright.getpixel((2, 0)) == (255, 0, 0)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (200, 10)]
    pixels = read_back(tmp_path, frames[0], "gif", save_all=True, append_images=frames[1:])
    assert (pixels == 200).all()


def written(tmp_path, content, name="file.png"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_files_of_16_bits_are_as_bright_as_their_values(tmp_path, bits):
    """A camera's or a scanner's 12 bits in a file of 16 would be black."""
    values = np.array([[0, 2 ** (bits - 1), 2**bits - 1]], np.uint16)
    expected = [0, 128, 255]
    for name, content in (("file.png", png(values, 16)), ("file.tiff", None)):
        path = tmp_path / name
        if content is None:
            Image.fromarray(values).save(path)
        else:
            path.write_bytes(content)
        if bits < 16:
            with pytest.warns(ImageWarning, match=f"{name}: .* taken to be of {bits} bits"):
                pixels = np.asarray(read_image(path))
        else:
            pixels = np.asarray(read_image(path))
        np.testing.assert_array_equal(pixels[0], np.repeat(expected, 3).reshape(-1, 3))


def test_a_black_picture_is_black(tmp_path, recwarn):
    for pixels in (np.zeros((2, 3), np.uint16), np.zeros((2, 3), np.float32)):
        Image.fromarray(pixels).save(tmp_path / "black.tiff")
        assert not np.asarray(read_image(tmp_path / "black.tiff")).any()
    assert not recwarn.list


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("highest", [3, 100, 255, 1000, 4095, 65535])
def test_pgm_says_what_white_is(tmp_path, highest, plain):
    path = written(tmp_path, pgm(np.array([[0, highest // 4, highest]]), highest, plain), "a.pgm")
    expected = np.array([0, highest // 4, highest]) * 255 / highest
    assert np.abs(np.asarray(read_image(path))[0, :, 0] - expected).max() <= 0.51


def test_integers_that_are_no_shades(tmp_path):
    """Signed ones, as of a CT, are stretched like floats; 32 bits are not cut off at 16."""
    for values, expected in (
        ([-1000, 0, 1000], [0, 128, 255]),
        ([0, 2**19, 2**20 - 1], [0, 8, 16]),  # of 24 bits
        ([0, 2**31 - 1], [0, 127]),
    ):
        path = tmp_path / "integers.tiff"
        Image.fromarray(np.array([values], np.int32)).save(path)
        np.testing.assert_array_equal(np.asarray(read_image(path))[0, :, 0], expected)


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_16_bits(tmp_path, bits):
    """Pillow reads their upper 8 bits; of data of 12 that is nearly nothing, which is said."""
    values = np.array([[[0, 2 ** (bits - 1), 2**bits - 1]]], np.uint16)
    path = written(tmp_path, png(values, 16, RGB))
    if bits == 16:
        np.testing.assert_array_equal(np.asarray(read_image(path))[0, 0], [0, 128, 255])
    else:
        with pytest.warns(ImageWarning, match="file.png: its colours of 16 bits end below"):
            read_image(path)


def test_a_broken_orientation_tag_turns_nothing(tmp_path):
    path = tmp_path / "broken.png"
    Image.new("RGB", (2, 3)).save(path, exif=b"Exif\0\0nonsense")
    assert read_image(path).size == (2, 3)
    assert not is_turned(path)


def test_a_mode_that_cannot_be_converted(tmp_path, monkeypatch):
    """As LAB in Pillow before 11.3."""

    def convert(self, mode):
        raise ValueError(f"conversion from {self.mode} to {mode} not supported")

    path = tmp_path / "lab.tiff"
    Image.new("LAB", (2, 3)).save(path)
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(ImageError, match=r"lab.tiff: cannot be converted to RGB from LAB"):
        read_image(path)


# Pictures of class ids.


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_ids_of_grey_files(tmp_path, bits):
    ids = np.arange(min(2**bits, 256)).reshape(2, -1)
    files = {"ids.png": png(ids, bits)}
    files |= {"ids.tiff": tiff(ids, bits)} if bits in (2, 4, 8) else {}
    for name, content in files.items():
        actual = read_labels(written(tmp_path, content, name))
        assert actual.ids.dtype == np.uint8
        np.testing.assert_array_equal(actual.ids, ids)
        assert actual.palette is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_of_palettes(tmp_path, bits):
    ids = np.arange(2**bits).reshape(2, -1)
    actual = read_labels(written(tmp_path, png(ids, bits, PALETTE)))
    np.testing.assert_array_equal(actual.ids, ids)
    assert actual.palette == [(k, 2 * k % 256, 3 * k % 256) for k in range(2**bits)]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("highest", [1, 3, 20, 200, 255, 256, 1000, 65535])
def test_ids_of_pgm(tmp_path, highest, plain):
    ids = np.arange(min(highest, 255) // 2 * 2 + 2).clip(max=min(highest, 255)).reshape(2, -1)
    actual = read_labels(written(tmp_path, pgm(ids, highest, plain), "ids.pgm"))
    np.testing.assert_array_equal(actual.ids, ids)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_labels_are_turned_as_pictures_are(tmp_path, mode, orientation, suffix):
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo, labels = tmp_path / f"photo.{suffix}", tmp_path / f"labels.{suffix}"
    Image.fromarray(np.stack([ids * 200] * 3, -1)).save(photo, exif=exif)
    dtype = {"1": bool, "I;16": np.uint16}.get(mode, np.uint8)
    image = Image.fromarray(ids.astype(dtype))
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(labels, exif=exif)
    upright = np.asarray(read_image(photo))[..., 0] // 200
    np.testing.assert_array_equal(read_labels(labels).ids, upright)
    turned = orientation in range(2, 9)
    assert is_turned(labels) == is_turned(photo) == turned
    assert np.array_equal(upright, ids) != turned


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "F"])
def test_labels_in_other_modes_are_refused(tmp_path, mode):
    path = tmp_path / "labels.tiff"
    Image.new(mode, (3, 2)).save(path)
    with pytest.raises(ImageError, match=f"labels.tiff: labels are .* this is {mode}$"):
        read_labels(path)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_labels_in_formats_that_change_them_are_refused(tmp_path, suffix):
    path = tmp_path / f"labels.{suffix}"
    Image.new("L", (8, 8)).save(path)
    with pytest.raises(ImageError, match="does not keep ids as they are; give a PNG"):
        read_labels(path)


def test_other_bad_labels(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (0, 1, 2)]
    for name in ("three.gif", "three.tiff", "three.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    Image.fromarray(np.array([[-1, 3]], np.int32)).save(tmp_path / "negative.tiff")
    (tmp_path / "high.png").write_bytes(png(np.array([[0, 1000]]), 16))
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.png")
    half = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"text")
    for name, reason in (
        ("three.gif", "holds several pictures; give one of labels"),
        ("three.tiff", "holds several pictures; give one of labels"),
        ("three.png", "holds several pictures; give one of labels"),
        ("negative.tiff", "ids must be 0 to 255, got -1"),
        ("high.png", "ids must be 0 to 255, got 1000"),
        ("half.png", "damaged or truncated"),
        ("empty.png", "the file is empty"),
        ("text.png", "not an image, or not a picture"),
        ("none.png", "no such file"),
    ):
        with pytest.raises(ImageError, match=re.escape(f"{tmp_path / name}: {reason}")):
            read_labels(tmp_path / name)


def test_a_picture_without_pixels(tmp_path):
    path = written(tmp_path, b"GIF89a\0\0\3\0\0\0\0,\0\0\0\0\0\0\3\0\0\2\2D\1\0;", "a.gif")
    for read in (read_image, read_labels):
        with pytest.raises(ImageError, match=r"a\.gif: "):
            read(path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_file(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"half.{suffix}: damaged or truncated"):
        read_image(path)


def test_write_png_replaces_a_file_and_keeps_ordinary_permissions(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    write_png(Image.new("RGB", (3, 2)), path)
    assert Image.open(path).size == (3, 2)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    def full(self, file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    path.write_text("old")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImageError, match=r"a\.png: cannot be written \(No space left"):
        write_png(Image.new("RGB", (3, 2)), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_text() == "old"


def test_where_a_png_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    for path, reason in (
        (tmp_path / "folder.png", "it is a folder"),
        (tmp_path / "none/a.png", "there is no folder"),
        (tmp_path / "a.jpg", "must end in .png"),
    ):
        with pytest.raises(ImageError, match=reason):
            check_writable(path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ImageError, match="no permission"):
        check_writable(tmp_path / "a.png")
