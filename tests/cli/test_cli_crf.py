import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import fastseg
from fastseg.cli import main
from fastseg.data.image import ORIENTATION
from fastseg.data.label_sets import voc_palette
from tests.cli.png_files import png
from tests.compat.densecrf_scripts import small_case

H, W, L = 24, 31, 5


@pytest.fixture
def files(tmp_path):
    """A picture, the probabilities of its labels, and where to write."""
    image, probabilities = small_case(H, W, L)
    Image.fromarray(image).save(tmp_path / "photo.png")
    np.save(tmp_path / "probabilities.npy", probabilities)
    return tmp_path


def run(folder, *arguments):
    return main(["crf", str(folder / "photo.png"), *map(str, arguments)])


def refused(capsys, folder, *arguments):
    """What the command says as it refuses: one line, and nothing is written."""
    assert run(folder, *arguments, "-o", folder / "out.png") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastseg: ")
    assert err.count("\n") == 1
    assert not (folder / "out.png").exists()
    return err


def expected_labels(folder, quality="high", iterations=10):
    image, probabilities = small_case(H, W, L)
    q = fastseg.dense_crf(
        -torch.from_numpy(probabilities).clamp(min=1e-5).log(),
        torch.from_numpy(image).permute(2, 0, 1),
        iterations=iterations,
        quality=quality,
    )
    return q.argmax(0).numpy()


@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
def test_softmax_file(files, capsys, quality):
    output = files / "out.png"
    source = ("--unary", files / "probabilities.npy", "--kind", "softmax")
    assert run(files, *source, "--quality", quality, "-o", output) == 0
    with Image.open(output) as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        np.testing.assert_array_equal(np.array(picture), expected_labels(files, quality))
    out = capsys.readouterr().out
    assert f"photo.png: 31 x 24, 10 iterations, quality {quality}" in out
    assert f"written to {output}" in out


def test_logits_and_energies_are_the_same_problem(files):
    log_probabilities = np.log(np.load(files / "probabilities.npy"))
    np.save(files / "logits.npy", (log_probabilities + 3).astype(np.float16))
    np.save(files / "energy.npy", -log_probabilities.astype(np.float64))
    for kind in ("logits", "energy"):
        output = files / f"{kind}.png"
        assert run(files, "--unary", files / f"{kind}.npy", "--kind", kind, "-o", output) == 0
        with Image.open(output) as picture:
            same = (np.array(picture) == expected_labels(files)).mean()
        assert same > (0.97 if kind == "logits" else 0.999)  # float16 keeps 3 digits


def test_labels_file_keeps_its_palette(files, capsys):
    labels = small_case(H, W, L)[1].argmax(0).astype(np.uint8)
    labels[::4] = 255
    picture = Image.fromarray(labels)
    picture.putpalette([10, 20, 30, 200, 100, 50] + 254 * [9, 9, 9])  # Pillow drops higher ids
    picture.save(files / "labels.png")
    output = files / "out.png"
    source = ("--labels", files / "labels.png", "--gt-prob", 0.8, "--iterations", 5)
    assert run(files, *source, "-o", output, "--threads", 1) == 0
    with Image.open(output) as refined:
        assert refined.getpalette()[:6] == [10, 20, 30, 200, 100, 50]
        ids = np.array(refined)
    assert ids.max() < L  # every unsure pixel got a label
    assert "  unsure      25.0% ->   0.0%\n" in capsys.readouterr().out


def test_a_label_that_vanishes_is_told(files, capsys):
    labels = np.zeros((H, W), np.uint8)
    labels[3, 4] = 1
    Image.fromarray(labels).save(files / "labels.png")
    assert run(files, "--labels", files / "labels.png", "-o", files / "out.png") == 0
    assert "  label 1      0.1% ->   0.0%\n" in capsys.readouterr().out


def test_unary_in_an_archive(files, capsys):
    probabilities = np.load(files / "probabilities.npy")
    np.savez_compressed(files / "one.npz", q=probabilities)
    np.savez(files / "two.npz", a=probabilities, b=probabilities)
    np.savez(files / "none.npz")
    output = files / "refined.png"
    assert run(files, "--unary", files / "one.npz", "--kind", "softmax", "-o", output) == 0
    with Image.open(output) as picture:
        np.testing.assert_array_equal(np.array(picture), expected_labels(files))
    capsys.readouterr()
    assert "it holds 2 arrays: give one" in refused(capsys, files, "--unary", files / "two.npz")
    assert "it holds 0 arrays: give one" in refused(capsys, files, "--unary", files / "none.npz")


def test_a_mask_of_0_and_255_is_not_taken_for_unsure_pixels(files, capsys):
    """As a mask it would be erased by the default of --ignore."""
    mask = np.zeros((H, W), np.uint8)
    mask[:, 9:] = 255
    for name, pixels in (("mask.png", mask), ("all.png", mask | 255)):
        Image.fromarray(pixels).save(files / name)
        message = refused(capsys, files, "--labels", files / name)
        assert f"{name}: holds {'0 and 255' if name == 'mask.png' else '255'} alone" in message
        assert "give --ignore 255" in message
    output = files / "out.png"
    assert run(files, "--labels", files / "mask.png", "--ignore", 255, "-o", output) == 0
    assert "  unsure " in capsys.readouterr().out
    Image.fromarray(mask > 0).save(files / "bits.png")
    Image.fromarray(mask // 255).save(files / "ids.png")
    results = []
    for name in ("bits.png", "ids.png"):
        assert run(files, "--labels", files / name, "-o", output, "--gt-prob", 0.99) == 0
        assert "  label 1 " in capsys.readouterr().out
        with Image.open(output) as picture:
            results.append(np.array(picture))
    np.testing.assert_array_equal(*results)
    assert results[0].max() == 1


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_grey_labels_of_any_depth_are_ids(files, capsys, bits):
    labels = np.tile(np.arange(W) // 8, (H, 1))
    (files / "labels.png").write_bytes(png(labels, bits))
    terms = ("--gaussian", 3, 0, "--bilateral", 80, 13, 0)
    output = files / "out.png"
    assert run(files, "--labels", files / "labels.png", "-o", output, *terms) == 0
    with Image.open(output) as picture:
        np.testing.assert_array_equal(np.array(picture), labels)
    assert "label 85" not in capsys.readouterr().out


@pytest.mark.parametrize("ids", [64, 65, 200])
def test_shades_in_place_of_labels_are_told(files, capsys, ids):
    labels = Image.fromarray((np.arange(H * W) % ids).astype(np.uint8).reshape(H, W))
    labels.save(files / "shades.png")
    arguments = ("--labels", files / "shades.png", "-o", files / "out.png", "--iterations", 1)
    assert run(files, *arguments) == 0
    told = (
        f"shades.png: holds {ids} different ids, as a picture of shades" in capsys.readouterr().err
    )
    assert told == (ids > 64)
    assert run(files, *arguments, "--num-labels", ids) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_and_their_picture_are_turned_alike(files, capsys, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo, labels, output = files / "photo.png", files / "labels.png", files / "out.png"
    ids = Image.fromarray(np.tile((np.arange(W) // 8).astype(np.uint8), (H, 1)))
    with Image.open(photo) as image:
        image.copy().save(photo, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(photo)).size
    arguments = ("--labels", labels, "-o", output, "--gaussian", 3, 0, "--bilateral", 80, 13, 0)
    warning = f"fastseg: {photo} is turned upright by its orientation tag; {labels} has none"

    ids.save(labels, exif=exif)
    assert run(files, *arguments) == 0
    assert capsys.readouterr().err == ""
    with Image.open(output) as picture:
        assert picture.size == upright
        expected = ImageOps.exif_transpose(Image.open(labels))
        np.testing.assert_array_equal(np.array(picture), np.array(expected))

    ids.save(labels)  # as drawn on the picture without its tag: of its size, or not
    output.unlink()
    if orientation > 4:
        message = refused(capsys, files, "--labels", labels)
        assert f"is {W} x {H}, the picture {H} x {W} when it is turned upright" in message
    else:
        assert run(files, *arguments) == 0
        err = capsys.readouterr().err
        assert err.startswith(warning) if orientation > 1 else err == ""


def test_unary_of_a_turned_picture(files, capsys):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    with Image.open(files / "photo.png") as image:
        image.copy().save(files / "photo.png", exif=exif)
    source = ("--unary", files / "probabilities.npy", "--kind", "softmax")
    assert run(files, *source, "-o", files / "out.png") == 0
    assert "probabilities.npy has none and is taken to be upright" in capsys.readouterr().err


def test_a_dark_picture_of_16_bits_is_told_in_one_line(files, capsys):
    (files / "photo.png").write_bytes(png(np.arange(H * W).reshape(H, W) * 5, 16))
    source = ("--unary", files / "probabilities.npy", "--kind", "softmax")
    for _ in range(2):
        assert run(files, *source, "-o", files / "out.png") == 0
        err = capsys.readouterr().err
        assert err == (
            f"fastseg: {files / 'photo.png'}: its grey values end at 3715 and are taken to be of "
            "12 bits\n"
        )


def test_zero_weights_change_nothing(files):
    output = files / "out.png"
    source = ("--unary", files / "probabilities.npy", "--kind", "softmax")
    none = ("--gaussian", 3, 0, "--bilateral", 80, 13, 0)
    assert run(files, *source, *none, "-o", output) == 0
    with Image.open(output) as picture:
        labels = small_case(H, W, L)[1].argmax(0)
        np.testing.assert_array_equal(np.array(picture), labels)


def test_picture_of_before_and_after(files, capsys):
    source = ("--unary", files / "probabilities.npy", "--kind", "softmax")
    both = files / "both.png"
    assert run(files, *source, "-o", files / "out.png", "--compare", both) == 0
    with Image.open(both) as picture:
        assert picture.width > 3 * W
        assert picture.height >= H
    assert f"before and after in {both}" in capsys.readouterr().out


def test_palette_is_that_of_voc():
    palette = voc_palette()
    assert palette[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert palette[15] == (192, 128, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def bad_arrays():
    probabilities = small_case(H, W, L)[1]
    nan = probabilities.copy()
    nan[0, 0, 0] = np.nan
    yield "size", probabilities[:, :-1], (), r"must be of shape (labels, 24, 31)"
    yield "rank", probabilities[0], (), r"got (24, 31)"
    yield "one", probabilities[:1], (), "must hold 2 to 256 labels, got 1"
    yield "nan", nan, (), "must not hold NaN"
    yield "kind", probabilities * 9, (), "probabilities must be 0 to 1"
    yield "text", np.full((L, H, W), "x"), (), "must hold an array of real numbers"
    yield "objects", np.array([None]), (), "not an .npy or .npz of numbers"
    yield "bandwidth", probabilities, ("--gaussian", 0, 3), "sxy"
    yield "tiny", probabilities, ("--bilateral", 80, 1e-30, 10, "--quality", "compat"), "feature"
    yield "iterations", probabilities, ("--iterations", -1), "iterations must not be negative"
    yield "threads", probabilities, ("--threads", -1), "--threads -1: at least 0"
    yield "device", probabilities, ("--device", "tpu"), "--device tpu: not a device"


@pytest.mark.parametrize(
    ("array", "options", "reason"),
    [case[1:] for case in bad_arrays()],
    ids=[case[0] for case in bad_arrays()],
)
def test_bad_unary(files, capsys, array, options, reason):
    np.save(files / "bad.npy", array)
    source = ("--unary", files / "bad.npy", "--kind", "softmax")
    assert reason in refused(capsys, files, *source, *options)


def test_bad_files(files, capsys):
    (files / "text.npy").write_text("some text")
    Image.new("RGB", (W, H)).save(files / "rgb.png")
    Image.new("L", (W, H - 1)).save(files / "small.png")
    Image.new("L", (W, H), 9).save(files / "nine.png")
    good = ("--unary", files / "probabilities.npy")
    assert "no such file" in refused(capsys, files, "--labels", files / "none.png").lower()
    assert "No such file" in refused(capsys, files, "--unary", files / "none.npy")
    assert "not an .npy" in refused(capsys, files, "--unary", files / "text.npy")
    assert "not a picture" in refused(capsys, files, "--labels", files / "text.npy")
    assert "this is RGB" in refused(capsys, files, "--labels", files / "rgb.png")
    assert "is 31 x 23, the picture" in refused(capsys, files, "--labels", files / "small.png")
    nine = ("--labels", files / "nine.png")
    assert "there are 5 labels" in refused(capsys, files, *nine, "--num-labels", 5)
    assert "--num-labels 300" in refused(capsys, files, *nine, "--num-labels", 300)
    assert "--gt-prob 1.0" in refused(capsys, files, *nine, "--gt-prob", 1)
    assert "must end in .png" in refused(capsys, files, *good, "--compare", files / "both.jpg")
    (files / "photo.png").write_bytes(b"")
    assert "the file is empty" in refused(capsys, files, *good)


def test_usage(files):
    for arguments in ([], ["--unary", "a.npy", "--labels", "b.png"], ["--quality", "best"]):
        with pytest.raises(SystemExit) as status:
            run(files, *arguments)
        assert status.value.code == 2
