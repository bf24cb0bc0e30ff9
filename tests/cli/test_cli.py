import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastseg.cli import main
from fastseg.data import normalise
from fastseg.models import build_model
from fastseg.segment.segmenter import Segmenter, highest_class, refine, refining_crf
from fastseg.zoo import SOURCES
from fastseg.zoo.checkpoint import save_model

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


def test_labels_are_the_argmax_of_the_resized_logits():
    logits = torch.randn(1, 5, 9, 7)
    labels = highest_class(logits, (31, 20))
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


def test_crf_and_other_weights_stand_beside_the_first(tmp_path, photo, weights, capsys):
    output = tmp_path / "out.png"
    arguments = ["segment", str(photo), "-o", str(output), "--weights", str(weights), "--crf"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "segnet_basic  segnet_basic and dense CRF" in out
    assert "of the pixels changed" in out
    with Image.open(output) as drawn:
        in_a_row = drawn.width
        assert in_a_row > 3 * 41
    assert main([*arguments, "--beside", str(weights)]) == 0
    assert "small  segnet_basic  segnet_basic and dense CRF" in capsys.readouterr().out
    with Image.open(output) as drawn:
        assert drawn.width == in_a_row - 41, "two rows of two"
        assert drawn.height >= 2 * 30
    assert "has other classes than" in refused(
        capsys, *arguments[1:], "--beside", "segnet_basic_camvid"
    )


def test_the_crf_is_that_of_a_model_with_one():
    """The evaluation refines at the input's size, as the command does at the photo's."""
    torch.manual_seed(0)
    options = {"width": 4, "kernel_size": 3}
    plain = build_model("segnet_basic", 3, **options).eval()
    with_crf = build_model("segnet_basic", 3, crf=refining_crf(3), **options).eval()
    with_crf.load_state_dict(plain.state_dict(), strict=False)
    picture = Image.effect_noise((41, 30), 50).convert("RGB")
    x = normalise(picture)[None]
    with torch.inference_mode():
        expected = with_crf(x, torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None])
        torch.testing.assert_close(refine(plain(x), picture), expected.softmax(1))


def test_large_pictures_are_refined_at_a_megapixel(monkeypatch):
    monkeypatch.setattr("fastseg.segment.segmenter.MAX_CRF_PIXELS", 100)
    refined = refine(torch.randn(1, 3, 8, 8), Image.new("RGB", (40, 10)))
    assert refined.shape == (1, 3, 5, 20)


@pytest.mark.parametrize("name", ["kazuto", "tensorflow", "torchvision"])
def test_a_picture_is_prepared_as_its_source_says(photo, name):
    rule = SOURCES[name].preprocessing
    segmenter = Segmenter(None, "", [], [], rule.mean, rule.std, rule.channels, short_side=30)
    picture = Image.open(photo).convert("RGB")
    pixels = np.asarray(picture)[..., :: 1 if rule.channels == "RGB" else -1]
    expected = ((pixels / 255 - rule.mean) / rule.std).transpose(2, 0, 1)
    np.testing.assert_allclose(segmenter.prepare(picture)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [1, 7, 64])
def test_short_side(photo, weights, side):
    segmenter = Segmenter.load(weights, short_side=side)
    assert min(segmenter.prepare(Image.open(photo).convert("RGB")).shape[-2:]) == side


def test_bad_short_side(photo, weights, capsys):
    arguments = (photo, "--weights", weights, "--short-side", 0)
    assert "short_side must be at least 1, got 0" in refused(capsys, *arguments)


def test_a_file_of_another_model_or_source(photo, weights, capsys):
    arguments = (photo, "--weights", weights)
    message = refused(capsys, *arguments, "--model", "unet")
    assert "is a segnet_basic of fastseg, not a unet" in message
    message = refused(capsys, *arguments, "--source", "smp")
    assert "is no checkpoint of segmentation_models_pytorch's" in message
    message = refused(capsys, *arguments, "--option", "wide=3")
    assert "unexpected keyword argument 'wide'" in message


@pytest.mark.parametrize("told", [True, False], ids=["told", "recognised"])
def test_checkpoint_of_another_project(tmp_path, photo, told, capsys):
    """Its classes, here VOC's, are known by their number; an auxiliary head is left alone."""
    torch.manual_seed(0)
    model = build_model("fcn", 21, backbone="resnet50", output_stride=8, aux=True).eval()
    torch.save(model.state_dict(), tmp_path / "fcn_resnet50.pth")
    output = tmp_path / "out.png"
    more = ["--model", "fcn", "--source", "torchvision", "--short-side", "64"] if told else []
    weights = ["--weights", str(tmp_path / "fcn_resnet50.pth")]
    assert main(["segment", str(photo), "-o", str(output), *weights, *more]) == 0
    out = capsys.readouterr().out
    assert f"{photo}: 41 x 30, fcn on cpu" in out

    segmenter = Segmenter.load(tmp_path / "fcn_resnet50.pth", short_side=64)
    x = segmenter.prepare(Image.open(photo).convert("RGB"))
    torch.testing.assert_close(segmenter(x), model(x)["out"], rtol=1e-4, atol=1e-4)
    message = refused(capsys, photo, *weights, "--option", "wide=3")
    assert "unexpected keyword argument 'wide'" in message
    if told:
        labels = highest_class(segmenter(x), (30, 41))
        names = {segmenter.classes[k] for k in np.unique(labels) if (labels == k).mean() > 0.001}
        assert names == {line.split()[0] for line in out.splitlines() if line.endswith("%")}


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
    assert f"{tmp_path}: has no pictures" in refused(capsys, tmp_path, "-o", tmp_path / "out.png")


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
    assert "has no state_dict" in refused(capsys, *arguments)
    torch.save({"some": torch.ones(1)}, bad)
    assert "is no checkpoint of any of fastseg, torchvision" in refused(capsys, *arguments)
    contents = torch.load(weights, weights_only=True)
    palette = contents["metadata"].pop("palette")
    torch.save(contents, bad)
    assert "its metadata lacks palette" in refused(capsys, *arguments)
    contents["metadata"]["palette"] = palette[:2]
    torch.save(contents, bad)
    assert "a palette of 2 colours for 3 classes" in refused(capsys, *arguments)
    assert not output.exists()


def test_interrupt(monkeypatch, photo, capsys):
    def interrupt(path, form):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastseg.cli.segment.read_picture", interrupt)
    assert main(["segment", str(photo), "-o", str(photo)]) == 130
    assert capsys.readouterr().err == "fastseg: interrupted\n"


def test_a_defect_of_our_own_keeps_its_traceback(monkeypatch, photo):
    def defect(path, form):
        raise RuntimeError("a defect")

    monkeypatch.setattr("fastseg.cli.segment.read_picture", defect)
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
