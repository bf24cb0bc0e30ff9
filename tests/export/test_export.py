"""Exported files against the network: all formats, all networks, at sizes that were not tried."""

from __future__ import annotations

import importlib.util
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastseg.export import FORMATS, Comparison, ExportError, Recipe, export_segmenter
from fastseg.export.compare import compare_outputs
from fastseg.export.deployed import Deployed
from fastseg.export.program import capture, least_size
from fastseg.models.foreign import ForeignModel
from fastseg.segment.segmenter import highest_class
from tests.export.exported import CLASSES, segmenter
from tests.models.small_models import SMALL

PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch_export": (),
    "aoti": (),
    "openvino": ("openvino",),
}


def need(name: str) -> None:
    for package in PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def runs(name: str, path):
    return FORMATS[name].load(path)


# AOTInductor compiles C++ for ten seconds a file, so that each choice is made once.
FORMS = [
    pytest.param(
        name,
        whole,
        dynamic,
        id=f"{name}-{'whole' if whole else 'network'}-{'dynamic' if dynamic else 'one size'}",
    )
    for name, whole, dynamic in itertools.product(FORMATS, (False, True), (False, True))
    if name != "aoti" or whole == dynamic
]


@pytest.fixture
def light_compiler():
    """AOTInductor's C++ is compiled in half the time: how fast it runs is torch's affair."""
    from torch._inductor import config  # takes a second, which few tests need

    lighter = {
        "cpp.simdlen": 1,
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.precompile_headers": False,
    }
    with config.patch(lighter):
        yield


@pytest.mark.parametrize(("name", "whole", "dynamic"), FORMS)
def test_every_format(tmp_path, request, name, whole, dynamic):
    """`whole`: with normalisation ahead and the class map behind."""
    need(name)
    if name == "aoti":
        request.getfixturevalue("light_compiler")
    ours = segmenter("segnet_basic")
    # With each stage the sizes become longer terms, in which the compilers do arithmetic.
    ours.model.encoder, ours.model.decoder = ours.model.encoder[:2], ours.model.decoder[-2:]
    recipe = Recipe(name, (40, 56), dynamic, normalise=whole, class_map=whole)
    written = export_segmenter(ours, tmp_path / f"model{FORMATS[name].suffix}", recipe)
    assert written.comparison.problem is None, written.comparison
    module = Deployed(ours, normalise=whole, class_map=whole)
    run = runs(name, written.path)
    for size in [(1, 40, 56), (3, 33, 71)] if dynamic else [(1, 40, 56)]:
        image = module.random_input(*size)
        with torch.no_grad():
            expected = module(image)
        found = run(image)
        assert found.dtype == expected.dtype == (torch.uint8 if whole else torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_takes_all_sizes(name):
    """Squares, which the traced size is not, odd sides and single pictures."""
    module = Deployed(segmenter(name), normalise=False, class_map=False).eval()
    program = capture(module, module.random_input(2, 96, 96), dynamic=True).module()
    for size in [(1, 96, 96), (3, 75, 101), (1, 101, 75), (2, 64, 128), (1, 79, 79)]:
        image = module.random_input(*size)
        with torch.no_grad():
            torch.testing.assert_close(program(image), module(image))


def test_a_padded_network_takes_all_sizes():
    class Halving(nn.Module):
        """Takes sides that 4 divides."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x):
            small = nn.functional.avg_pool2d(self.conv(x), 4)
            return nn.functional.interpolate(small, scale_factor=4)

    ours = segmenter("segnet_basic")
    object.__setattr__(ours, "model", ForeignModel(Halving(), 5, 3, 4).eval())
    module = Deployed(ours, normalise=False, class_map=False)
    program = capture(module, module.random_input(2, 16, 20), dynamic=True).module()
    for size in [(1, 16, 20), (2, 17, 23), (1, 5, 9)]:
        image = module.random_input(*size)
        with torch.no_grad():
            torch.testing.assert_close(program(image), module(image))


@pytest.mark.parametrize("name", ["deeplabv3plus mobile", "unet bilinear", "deeplabv2", "fcn8s"])
def test_onnx_at_other_sizes(tmp_path, name):
    need("onnx")
    recipe = Recipe("onnx", (64, 64), dynamic=True, normalise=True)
    ours = segmenter(name)
    written = export_segmenter(ours, tmp_path / "model.onnx", recipe)
    assert written.comparison.problem is None, written.comparison
    assert written.comparison.shapes == [(1, 64, 64, 3), (2, 77, 70, 3)]
    module = Deployed(ours, normalise=True, class_map=False)
    image = module.random_input(3, 75, 101)
    with torch.no_grad():
        expected = module(image)
    scale = float(expected.abs().max())
    found = runs("onnx", written.path)(image)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("opset", [18, 20])
def test_opset_and_names(tmp_path, opset):
    need("onnx")
    import onnx  # only where it is installed

    recipe = Recipe("onnx", (32, 48), dynamic=True, class_map=True, opset=opset)
    written = export_segmenter(segmenter("segnet_basic"), tmp_path / "model.onnx", recipe)
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import}[""] == opset
    (image,), (classes,) = model.graph.input, model.graph.output
    assert (image.name, classes.name) == ("image", "classes")
    names = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert names == ["batch", 3, "height", "width"]
    assert json.loads(written.card.read_text())["opset"] == opset


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_steps_are_those_of_the_segmenter(channels):
    ours = segmenter("segnet_basic", channels)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    picture = Image.fromarray(pixels)
    module = Deployed(ours, normalise=True, class_map=True)
    with torch.no_grad():
        logits = module.logits(torch.from_numpy(pixels)[None])
        torch.testing.assert_close(logits, ours(ours.prepare(picture)))
        found = module(torch.from_numpy(pixels)[None])[0]
    np.testing.assert_array_equal(found, highest_class(logits, (32, 48)))


def test_many_classes_are_int64():
    ours = segmenter("segnet_basic")
    object.__setattr__(ours, "classes", [str(i) for i in range(257)])
    module = Deployed(ours, normalise=False, class_map=True)
    assert module(module.random_input(1, 32, 32)).dtype == torch.int64


def test_card(tmp_path):
    ours = segmenter("unet", depth=2)
    recipe = Recipe("torch_export", (48, 64), dynamic=True, normalise=True)
    weights = {"file": "w.pt", "sha256": "0" * 64}
    written = export_segmenter(ours, tmp_path / "model.pt2", recipe, weights=weights)
    assert written.card == tmp_path / "model.pt2.json"
    card = json.loads(written.card.read_text())
    (image,), (logits,) = card["inputs"], card["outputs"]
    assert (image["name"], image["dtype"]) == ("image", "uint8")
    assert image["shape"] == ["batch", "height", "width", 3]
    assert (logits["name"], logits["dtype"]) == ("logits", "float32")
    assert logits["shape"] == ["batch", len(CLASSES), "height", "width"]
    assert card["classes"] == CLASSES
    assert card["palette"][2] == [2, 4, 6]
    assert card["mean"] == list(ours.mean)
    assert card["std"] == list(ours.std)
    assert card["weights"] == weights
    assert card["size"] == [48, 64]
    assert card["comparison"]["problem"] is None
    least = Deployed(ours, normalise=True, class_map=False).random_input(1, *card["least_size"])
    assert runs("torch_export", written.path)(least).shape[-2:] == tuple(card["least_size"])


@pytest.mark.parametrize("name", ["deeplabv3 mobile", "deeplabv3plus mobile"])
def test_the_least_size_is_one_that_a_program_takes_and_no_less_is(name):
    """What narrows no range, such as "more than one row at stride 16", counts too."""
    module = Deployed(segmenter(name), normalise=False, class_map=False)
    program = capture(module, module.random_input(2, 65, 49), dynamic=True)
    height, width = least_size(program, module)
    run = program.module()
    with torch.no_grad():
        for size in ((height, width), (height, 80), (80, width)):
            image = module.random_input(1, *size)
            torch.testing.assert_close(run(image), module(image))
        for size in ((height - 1, width), (height, width - 1)):
            with pytest.raises(AssertionError, match="Guard failed"):
                run(module.random_input(1, *size))


def test_a_card_is_json_whatever_names_and_numbers_are_in_it(tmp_path, monkeypatch):
    """A name may come from bytes that are no UTF-8; the difference of broken logits is NaN."""
    broken = Comparison("torch", [(1, 3, 32, 32)], float("nan"), problem="disagrees")
    monkeypatch.setattr("fastseg.export.segmenter.compare", lambda *_: broken)
    ours = segmenter("segnet_basic")
    names = ["Straße", "caf\udce9", "tree", "car", "person"]
    object.__setattr__(ours, "classes", names)
    recipe = Recipe("torch_export", (32, 32))
    written = export_segmenter(ours, tmp_path / "model.pt2", recipe)
    text = written.card.read_text("utf-8")
    assert "NaN" not in text
    assert "Straße" in text
    assert json.loads(text)["classes"] == names


def test_outputs_of_another_size_are_told_in_the_card(tmp_path):
    recipe = Recipe("torch_export", (188, 204))
    ours = segmenter("unet", padding="valid")
    written = export_segmenter(ours, tmp_path / "model.pt2", recipe)
    (logits,) = json.loads(written.card.read_text())["outputs"]
    assert logits["shape"] == [1, 5, 4, 20]
    assert written.comparison.problem is None


def broken(module, found):
    image = module.random_input(1, 32, 32)
    return compare_outputs(module, "runtime", [image], [found(module(image))]).problem


def test_a_file_that_disagrees_is_told():
    logits = Deployed(segmenter("segnet_basic"), normalise=False, class_map=False)
    assert broken(logits, lambda y: y) is None
    assert broken(logits, lambda y: y * (1 + 1e-5)) is None
    assert "disagrees" in broken(logits, lambda y: y * 1.01)
    assert "disagrees" in broken(logits, lambda y: y.where(y != y.max(), torch.nan))
    assert "returns torch.float64" in broken(logits, lambda y: y.double())
    assert "(1, 5, 31, 32)" in broken(logits, lambda y: y[:, :, 1:])
    classes = Deployed(segmenter("segnet_basic"), normalise=False, class_map=True)
    assert broken(classes, lambda y: y) is None
    assert "disagrees" in broken(classes, lambda y: (y + 1) % 5)
    assert "returns the class 200" in broken(classes, lambda y: y * 0 + 200)


def test_what_cannot_be_exported(tmp_path):
    path = tmp_path / "model.pt2"
    small = Recipe("torch_export", (32, 32))
    with pytest.raises(ExportError, match=r"calls fastseg::\w+.*backend=torch"):
        export_segmenter(segmenter("segnet_basic", backend="fastseg"), path, small)
    with pytest.raises(ExportError, match=r"ends in a dense CRF.*--without-crf"):
        export_segmenter(segmenter("segnet_basic", crf="post"), path, small)
    one = segmenter("segnet_basic")
    object.__setattr__(one, "classes", ["vessel"])
    with pytest.raises(ExportError, match="a network of one class has no class map"):
        export_segmenter(one, path, Recipe("torch_export", (32, 32), class_map=True))
    half = segmenter("segnet_basic")
    half.model.half()
    with pytest.raises(ExportError, match=r"float32 on the CPU, got torch\.float16 on cpu"):
        export_segmenter(half, path, small)
    elsewhere = segmenter("segnet_basic")
    elsewhere.model.to("meta")
    with pytest.raises(ExportError, match=r"float32 on the CPU, got torch\.float32 on meta"):
        export_segmenter(elsewhere, path, small)
    with pytest.raises(ExportError, match=r"size \(8, 32\): x must be at least 16x16"):
        export_segmenter(segmenter("segnet_basic"), path, Recipe("torch_export", (8, 32)))
    with pytest.raises(ValueError, match="normalise must be False for a network of 1 channels"):
        export_segmenter(
            segmenter("unet", in_channels=1), path, Recipe("torch_export", (32, 32), normalise=True)
        )
    with pytest.raises(ValueError, match=r"ends in \.pt2"):
        export_segmenter(segmenter("segnet_basic"), tmp_path / "model.onnx", small)
    assert not list(tmp_path.iterdir())


def test_a_network_for_one_size_alone_is_told():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3, 16, 16)

    ours = segmenter("segnet_basic")
    object.__setattr__(ours, "model", Fixed())
    module = Deployed(ours, normalise=False, class_map=False)
    with pytest.raises(ExportError, match="cannot be exported for all sizes"):
        capture(module, module.random_input(2, 16, 16), dynamic=True)
    capture(module, module.random_input(2, 16, 16), dynamic=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"format": "tflite"}, "format must be one of onnx"),
        ({"size": (1, 32)}, "size must be two sides"),
        ({"opset": 17}, "opset must be at least 18, got 17"),
    ],
)
def test_bad_recipes(arguments, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**{"format": "onnx", "size": (32, 32), **arguments})
