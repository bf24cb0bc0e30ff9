import json
import re
import sys

import pytest
import torch
from torch import nn

from fastseg.cli import main, optimize, timing
from fastseg.models import build_model
from fastseg.zoo.checkpoint import save_model
from tests.zoo.other_models import import_or_skip

CODE = '''
import threading

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, classes, 1)

    def forward(self, x):
        return self.last(torch.relu(self.bn(self.conv(x))))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


class Two(Lazy):
    def forward(self, x, ids):
        y = self.conv(x)
        return {"map": y.argmax(1), "scores": [y, None, y[:, :1] * ids[:, None, None, None]]}


class Writes(Lazy):
    def forward(self, x):
        return self.conv(x.mul_(2))


class Layout(Lazy):
    """Computes something else in channels_last, which optimised models run in."""

    def forward(self, x):
        return self.conv(x) * (1.001 if x.is_contiguous() else 1)


class View(Lazy):
    def forward(self, x):
        return self.conv(x).view(-1)


class Draws(Lazy):
    def forward(self, x):
        return torch.dropout(self.conv(x), 0.5, True)


class Own(Network):
    """Its methods return something else than torch's."""

    def eval(self):
        super().eval()

    def to(self, *args, **kwargs):
        super().to(*args, **kwargs)


class NoEval(Network):
    def train(self, mode=True):
        return self


class Refuses(Network):
    def eval(self):
        raise OverflowError("not now")


class Locked(Lazy):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Text(nn.Module):
    def forward(self, x):
        return "text"


class Ends(nn.Module):
    def forward(self, x):
        raise SystemExit("the end")


def make(classes=5):
    return Network(classes)


def fails():
    raise KeyError("first\\nsecond")


def number():
    return 3


network = Network().train()
optimised = make().eval()
import fastseg
fastseg.optimize_(optimised, mode="infer")
zeros = nn.Conv2d(3, 2, 1)
nn.init.zeros_(zeros.weight), nn.init.zeros_(zeros.bias)
'''
SMALL = "--input 1,3,16,20"
ROWS = [
    "eager, contiguous",
    "eager, channels_last",
    "optimised",
    "torch.compile",
    "optimised, torch.compile",
    "ONNX Runtime",
    "OpenVINO",
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with somebody's module; few runs are timed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(timing, "MIN_ROUNDS", 2)
    monkeypatch.setattr(timing, "MIN_SECONDS", 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/nets.py").write_text(CODE)
    (tmp_path / "mine/broken.py").write_text("def (")
    (tmp_path / "mine/needs.py").write_text("import not_there_at_all")
    (tmp_path / "mine/ends.py").write_text("raise SystemExit(2)")
    (tmp_path / "text.pt").write_text("text")
    model = build_model("segnet_basic", 3, width=4, kernel_size=3)
    told = {"model": "segnet_basic", "options": {"width": 4, "kernel_size": 3}, "short_side": 32}
    told |= {"classes": ["a", "b", "c"], "palette": [[0] * 3] * 3, "mean": [0.5] * 3}
    save_model(tmp_path / "small.pt", model, told | {"std": [0.25] * 3})
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


def command(line):
    return main(["optimize", *line.split()])


@pytest.mark.parametrize(
    "model",
    [
        "mine.nets:network",
        "mine.nets:Network",
        "mine.nets:make --option classes=3",
        "mine.nets:nn.Conv2d --option in_channels=3 --option out_channels=2 --option kernel_size=3",
        "mine.nets:Lazy",
        "mine.nets:Writes",
        "mine.nets:Own",
        "segnet_basic --option width=4 --option num_classes=3",
        "small.pt",
        "deeplabv3plus_mobilenet_v2_camvid",
        "smp:Unet --option encoder_name=resnet18 --option classes=2 --input 1,3,32,32",
        "timm:resnet18 --option features_only=True --input 1,3,32,32",
        "torchvision:resnet18 --input 1,3,32,32",
        "torchvision:lraspp_mobilenet_v3_large --input 1,3,32,32",
    ],
)
def test_every_name_of_a_model(model, capsys):
    package = model.partition(":")[0]
    if package in ("smp", "timm", "torchvision"):
        import_or_skip("torchvision")
        import_or_skip({"smp": "segmentation_models_pytorch"}.get(package, package))
    size = "" if "--input" in model else SMALL
    assert command(f"{model} {size} --json told.json") == 0
    out = capsys.readouterr().out
    own = model.split()[0] in ("segnet_basic", "small.pt", "deeplabv3plus_mobilenet_v2_camvid")
    assert ("is of fastseg" if own else "fastseg.optimize_, mode infer: ") in out
    assert "outputs differ by at most" in out
    with open("told.json") as file:
        told = json.load(file)
    assert told["model"] == model.split()[0]
    assert told["agrees"]
    assert told["agreement"]["largest"] > 0
    assert (told["report"] is None) == own
    assert own or told["report"]["swapped"]
    assert [row["name"] for row in told["times"]] == ROWS
    times = {row["name"]: row["milliseconds"] for row in told["times"]}
    ratios = {row["name"]: row["speedup"] for row in told["times"]}
    eager = min(times[name] for name in ROWS[:2])
    for row in told["times"]:
        assert (row["milliseconds"] is None) == bool(row["reason"])
    for name in ROWS[:3]:
        assert ratios[name] == pytest.approx(eager / times[name])
        assert f"{times[name]:.2f} ms   {ratios[name]:.2f}x" in out
    assert ratios["torch.compile"] is None


def test_several_inputs_with_dtypes_from_a_file_of_options(folder, capsys):
    (folder / "c.json").write_text(json.dumps({"input": ["2,3,8,9", "2:int64"], "json": "o.json"}))
    assert command("mine.nets:Two --config c.json") == 0
    assert "mine.nets:Two on 2,3,8,9 float32, 2 int64, cpu" in capsys.readouterr().out
    told = json.loads((folder / "o.json").read_text())
    assert told["inputs"][1] == {"shape": [2], "dtype": "int64"}
    assert told["agreement"]["other"] is not None


@pytest.mark.parametrize("name", ["Layout", "View", "Draws"])
def test_other_outputs_are_not_timed(name, monkeypatch, folder, capsys):
    def no_time(*arguments):
        raise AssertionError("timed")

    monkeypatch.setattr(optimize, "interleaved_medians", no_time)
    assert command(f"mine.nets:{name} {SMALL} --json o.json") == 1
    out, err = capsys.readouterr()
    assert "these are other outputs: nothing is timed" in out
    assert " ms" not in out
    assert err == ""
    told = json.loads((folder / "o.json").read_text())
    assert (told["agrees"], told["times"]) == (False, [])
    assert ("view size is not compatible" in out) == (name == "View")


def test_a_fault_of_optimize_is_seen(monkeypatch, capsys):
    def faulty(model, mode):
        report = optimize_(model, mode=mode)
        model.last.bias.data[0] += 0.01
        return report

    optimize_ = optimize.optimize_
    monkeypatch.setattr(optimize, "optimize_", faulty)
    assert command(f"mine.nets:Network {SMALL}") == 1
    assert "differ by at most 1.0e-02" in capsys.readouterr().out


def test_outputs_of_zero_are_noted(capsys):
    assert command(f"mine.nets:zeros {SMALL}") == 0
    assert "note: outputs that are 0 or not finite say little" in capsys.readouterr().out


def test_torch_compile_is_timed_on_request(capsys):
    assert command(f"mine.nets:Network {SMALL} --compile") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"torch\.compile +[\d.]+ ms +[\d.]+x$", out, re.M)) == 2, out


@pytest.mark.parametrize(
    ("row", "needs"),
    [("ONNX Runtime", ["onnxruntime", "onnx", "onnxscript"]), ("OpenVINO", ["openvino"])],
)
def test_other_runtimes_are_timed_where_they_are_installed(row, needs, capsys):
    for package in needs:
        pytest.importorskip(package)
    for model in (f"Network {SMALL}", f"Writes {SMALL}"):
        assert command(f"mine.nets:{model}") == 0
        assert re.search(rf"{row} +[\d.]+ ms", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("package", "row"), [("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO")]
)
def test_a_missing_runtime_has_its_reason(package, row, monkeypatch, capsys):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    assert command(f"mine.nets:Network {SMALL}") == 0
    said = f"{row} +-   {package} is not installed: pip install {package}$"
    assert re.search(said, capsys.readouterr().out, re.M)


def test_what_a_rival_refuses_or_gets_wrong_is_its_reason(monkeypatch, capsys):
    def refuses(model, inputs):
        raise KeyError("an op")

    wrong = nn.Conv2d(3, 5, 1)
    monkeypatch.setattr(optimize.runtimes, "openvino", refuses)
    monkeypatch.setattr(optimize.runtimes, "onnx_runtime", lambda _, x: lambda: wrong(*x))
    assert command(f"mine.nets:Network {SMALL}") == 0
    out = capsys.readouterr().out
    assert re.search("OpenVINO +-   does not run: KeyError: 'an op'$", out, re.M)
    assert re.search("ONNX Runtime +-   has other outputs: they differ by at most", out)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "required: MODEL"),
        ("nonsense", "nonsense: no such file; a model is package.module:name, smp:NAME"),
        ("text.pt", "is not a readable checkpoint"),
        ("none.there:x", "there is no module none, neither installed nor in this folder"),
        ("mine.there:x", "there is no module mine.there, neither"),
        ("mine.nets:Nope", "mine.nets has no Nope; it has .*Network.*make.*network"),
        ("mine.nets:nn.Nope", "mine.nets.nn has no Nope"),
        ("mine.nets:", "an import path is package.module:name"),
        (":x", "an import path is package.module:name"),
        ("..mine:x", "an import path is package.module:name"),
        ("mine.broken:x", "mine.broken cannot be imported: SyntaxError"),
        ("mine.needs:x", "mine.needs cannot be imported: .*'not_there_at_all'"),
        ("mine.ends:x", "mine.ends cannot be imported: SystemExit: 2"),
        ("mine.nets:nn", "must be a module, a class or a function, got module"),
        ("mine.nets:number", "must make a torch.nn.Module, it made int"),
        ("mine.nets:fails", r"cannot be built: KeyError: 'first\\nsecond'$"),
        ("mine.nets:Network --option width=3", "cannot be built: TypeError: .*'width'"),
        ("mine.nets:network --option classes=3", "is built already"),
        ("mine.nets:optimised", "the model is optimised; fastseg.restore_.model. undoes it"),
        ("mine.nets:Network --input 1,4,8,8", "cannot compute this input: RuntimeError: Given"),
        ("mine.nets:Network --input 1,3,8,8 --input 2", "cannot compute this input: TypeError"),
        ("mine.nets:Network --input 1,3,8,8:int64", "cannot compute this input: RuntimeError"),
        ("mine.nets:NoEval", "mode 'infer' folds batch norms: call model.eval"),
        ("mine.nets:Refuses", "cannot be put in evaluation: OverflowError: not now"),
        (f"mine.nets:Locked {SMALL}", "cannot be copied: TypeError: .*lock"),
        (f"mine.nets:Text {SMALL}", "the model's output has no tensors, it is a str"),
        (f"mine.nets:Ends {SMALL}", "cannot compute this input: SystemExit: the end"),
        ("mine.nets:Network --input 1,0,8,8", "'1,0,8,8' is no list of sizes"),
        ("mine.nets:Network --input 1,3,-8,8", "'1,3,-8,8' is no list of sizes"),
        ("mine.nets:Network --input 1x3", "'1x3' is no list of sizes"),
        ("mine.nets:Network --input 1,3,8,8:real", "'1,3,8,8:real': the dtype is one of float32"),
        ("mine.nets:Network --input 9999999,9999999", "not enough memory"),
        ("mine.nets:Network --input 9999999999,9999999999", "--input .*overflow"),
        ("mine.nets:Network --input 1,3,9223372036854775807,5", "--input .*overflow"),
        (
            "mine.nets:Network --input 1,3,9223372036854775808,5",
            "a size is at most 922337203685477",
        ),
        ("mine.nets:Network --json none/o.json", "there is no folder none"),
        ("mine.nets:Network --json mine", "it is a folder"),
        ("mine.nets:Network --threads -1", "--threads -1: at least 0"),
        ("mine.nets:Network --device nonsense", "--device nonsense: not a device"),
        ("segnet_basic --option widht=3", "cannot be built: .*'widht'; its options are width"),
        ("segnet_basic --input 1,4,8,8", "cannot compute this input"),
        ("small.pt --option widht=3", "unexpected keyword argument 'widht'"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(line, said, capsys):
    try:
        status = command(line)
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert re.search(said, err, re.M), err
    assert err.count("\n") == 1 or err.startswith("usage:")


@pytest.mark.parametrize("package", ["smp", "timm", "torchvision"])
def test_networks_that_a_package_does_not_have(package, capsys):
    import_or_skip("torchvision")
    import_or_skip({"smp": "segmentation_models_pytorch"}.get(package, package))
    assert command(f"{package}:nonsense") == 2
    err = capsys.readouterr().err
    assert re.search(f"^fastseg: {package}:nonsense cannot be built: .*nonsense", err)
    assert err.count("\n") == 1


def test_the_model_itself_stays(monkeypatch):
    assert command(f"mine.nets:network {SMALL}") == 0
    network = sys.modules["mine.nets"].network
    assert type(network) is sys.modules["mine.nets"].Network
    assert type(network.conv) is nn.Conv2d
    assert network.conv.weight.is_contiguous()
    assert torch.is_grad_enabled()
