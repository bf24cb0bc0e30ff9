import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastseg.checkpoint import save_model
from fastseg.cli import main
from fastseg.cli.segment import segment
from fastseg.models import build_model

CLASSES = ["sky", "road", "tree"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model with weights that nobody trained."""
    torch.manual_seed(0)
    options = {"width": 4, "kernel_size": 3}
    model = build_model("segnet_basic", len(CLASSES), **options)
    metadata = {"model": "segnet_basic", "options": options, "classes": CLASSES}
    metadata |= {"palette": [[0, 0, 255], [128, 64, 128], [0, 128, 0]], "short_side": 32}
    metadata |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save_model(path, model, metadata)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 41, 3), np.uint8)).save(path)
    return path


def refused(capsys, *arguments):
    """What the command says as it refuses: one line."""
    assert main(["segment", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastseg: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F", "I", "I;16", "YCbCr"]
)
def test_every_mode_of_picture(tmp_path, weights, mode, capsys):
    picture = tmp_path / "picture.tiff"
    if mode == "I;16":
        Image.fromarray(np.arange(30 * 41, dtype=np.uint16).reshape(30, 41)).save(picture)
    else:
        Image.effect_noise((41, 30), 50).convert("RGB").convert(mode).save(picture)
    output = tmp_path / "out.png"
    assert main(["segment", str(picture), "-o", str(output), "--weights", str(weights)]) == 0
    with Image.open(output) as drawn:
        drawn.load()
        assert drawn.width > 41
        assert drawn.height >= 30
    assert f"{picture}: 41 x 30, segnet_basic on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (10000, 4), (4, 10000), (15, 700)])
def test_every_shape_of_picture(tmp_path, weights, size):
    picture, output = tmp_path / "picture.png", tmp_path / "out.png"
    Image.new("RGB", size, (10, 200, 10)).save(picture)
    assert main(["segment", str(picture), "-o", str(output), "--weights", str(weights)]) == 0
    with Image.open(output) as drawn:
        assert drawn.width > size[0]
        assert drawn.height >= size[1]


def test_labels_are_the_argmax_of_the_resized_logits(monkeypatch):
    logits = torch.randn(1, 5, 9, 7)
    labels = segment(lambda x: logits, torch.zeros(1, 3, 9, 7), (31, 20))
    resized = F.interpolate(logits, (31, 20), mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(labels, resized.argmax(1)[0])


def test_shipped_weights_and_comparison(tmp_path, photo, capsys):
    output = tmp_path / "out.png"
    assert main(["segment", str(photo), "-o", str(output), "--compare"]) == 0
    out = capsys.readouterr().out
    assert f"written to {output}" in out
    shares = [float(line.split()[-1][:-1]) for line in out.splitlines() if line.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.6)
    assert "100.00% of the pixels get the same class" in out


def png_that_claims(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"some text", "not an image"),
        (png_that_claims(60000, 60000), "too large an image"),
        (png_that_claims(500, 500), "damaged or truncated"),
    ],
    ids=["missing", "empty", "text", "bomb", "truncated"],
)
def test_bad_image(tmp_path, capsys, weights, content, reason):
    picture, output = tmp_path / "picture.png", tmp_path / "out.png"
    if content is not None:
        picture.write_bytes(content)
    message = refused(capsys, picture, "-o", output, "--weights", weights)
    assert message.startswith(f"fastseg: {picture}: {reason}")
    assert not output.exists()


def test_folder_in_place_of_an_image(tmp_path, capsys):
    assert f"{tmp_path}: not a file" in refused(capsys, tmp_path, "-o", tmp_path / "out.png")


def test_bad_output_is_refused_before_the_image_is_read(tmp_path, capsys):
    message = refused(capsys, tmp_path / "no image.png", "-o", tmp_path / "none/out.png")
    assert f"there is no folder {tmp_path / 'none'}" in message


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("nonsense", "not a device"),
        ("meta", "only cpu and cuda"),
        (f"cuda:{torch.cuda.device_count()}", f"torch sees {torch.cuda.device_count()} CUDA"),
    ],
)
def test_bad_device(photo, capsys, device, reason):
    assert f"--device {device}: {reason}" in refused(capsys, photo, "--device", device)


def test_bad_weights(tmp_path, photo, weights, capsys):
    bad, output = tmp_path / "bad.pt", tmp_path / "out.png"
    arguments = (photo, "-o", output, "--weights", bad)
    assert f"no checkpoint at {bad}" in refused(capsys, *arguments)
    bad.write_bytes(weights.read_bytes()[:5000])
    assert "not a readable checkpoint" in refused(capsys, *arguments)
    torch.save({"a pickle": "of something else"}, bad)
    assert "is not a fastseg weights file" in refused(capsys, *arguments)
    contents = torch.load(weights, weights_only=True)
    palette = contents["metadata"].pop("palette")
    torch.save(contents, bad)
    assert "its metadata lacks palette" in refused(capsys, *arguments)
    contents["metadata"]["palette"] = palette[:2]
    torch.save(contents, bad)
    assert "a palette of 2 colours for 3 classes" in refused(capsys, *arguments)
    assert not output.exists()


def test_interrupt(monkeypatch, photo, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastseg.cli.segment.read_image", interrupt)
    assert main(["segment", str(photo), "-o", str(photo)]) == 130
    assert capsys.readouterr().err == "fastseg: interrupted\n"


def test_a_defect_of_our_own_keeps_its_traceback(monkeypatch, photo):
    def defect(path):
        raise RuntimeError("a defect")

    monkeypatch.setattr("fastseg.cli.segment.read_image", defect)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["segment", str(photo), "-o", str(photo)])


def test_usage():
    for arguments in ([], ["nonsense"], ["segment"], ["info", "more"]):
        with pytest.raises(SystemExit) as exit_status:
            main(arguments)
        assert exit_status.value.code == 2


def test_as_a_module():
    command = [sys.executable, "-m", "fastseg", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0
    assert "segment" in result.stdout
    assert "info" in result.stdout
