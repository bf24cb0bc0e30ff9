"""Benchmarks of whole models in inference before and after fastseg.optimize_.

The rivals are eager in both layouts and torch.compile, on the CPU with freezing. It needs
torchvision and segmentation_models_pytorch for their models; SegNet is written out here; fastseg's
own models run on torch's ops and on fastseg's. Weights and statistics are random: time does not
depend on them. Each candidate must be as near to float64 as eager is.

    python -m benchmarks.optimize --threads 2
    python -m benchmarks.optimize --model Unet --scale 0.5 --no-compile
    python -m benchmarks.optimize --model deeplabv3_mobilenet_v3_large --class-map
    python -m benchmarks.optimize --device cuda --dtype bfloat16 --model SegNet --own
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

import fastseg
from benchmarks import allocators
from benchmarks.harness import (
    Candidate,
    Case,
    machine,
    measure,
    without_tensors,
    write_csv,
)
from fastseg.models import build_model, main_logits
from tests.zoo import other_models as zoo

OURS = ("fastseg", "fastseg + compile")
SIZES = {
    "deeplabv3_resnet50": (513, 513),
    "DeepLabV3Plus": (512, 512),
    "Unet": (512, 512),
    "SegNet": (360, 480),
    "deeplabv3_resnet101": (513, 513),
    "deeplabv3_mobilenet_v3_large": (513, 513),
    "fcn_resnet50": (513, 513),
    "lraspp_mobilenet_v3_large": (513, 513),
    "DeepLabV3": (512, 512),
    "PAN": (512, 512),
}
"""Height and width of the input, by the model."""
MAIN = ("deeplabv3_resnet50", "DeepLabV3Plus", "Unet", "SegNet")
OWN = {
    "fcn8s": ({}, (500, 500)),
    "unet": ({}, (512, 512)),
    "segnet": ({}, (360, 480)),
    "deeplabv2": ({}, (513, 513)),
    "deeplabv3": ({"output_stride": 8}, (513, 513)),
    "deeplabv3plus": ({"backbone": "mobilenet_v2"}, (513, 513)),
}
"""Options, and height and width of the input, of fastseg's models, by the builder."""


class SegNet(nn.Module):
    """SegNet (Badrinarayanan et al. 2017) on VGG16, in the way of public implementations."""

    def __init__(self, num_classes: int = 11):
        super().__init__()
        encoder = [(64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3]
        decoder = [(512,) * 3, (512, 512, 256), (256, 256, 128), (128, 64), (64,)]
        stages = self._stages(3, [*encoder, *decoder])
        self.encoder, self.decoder = nn.ModuleList(stages[:5]), nn.ModuleList(stages[5:])
        self.classifier = nn.Conv2d(64, num_classes, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2, 2)

    @staticmethod
    def _stages(channels: int, stages) -> list[nn.Sequential]:
        modules = []
        for widths in stages:
            layers = []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
                layers += [nn.ReLU(inplace=True)]
                channels = width
            modules.append(nn.Sequential(*layers))
        return modules

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, num_classes, H, W) for x (N, 3, H, W)."""
        pooled = []
        for stage in self.encoder:
            x = stage(x)
            size = x.size()
            x, indices = self.pool(x)
            pooled.append((indices, size))
        for stage in self.decoder:
            x = stage(self.unpool(x, *pooled.pop()))
        return self.classifier(x)


class ClassMap(nn.Module):
    """A network of torchvision that ends in the classes of pixels."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Returns the classes (N, H, W), int64, of x (N, 3, H, W)."""
        return self.network(x)["out"].argmax(1)


def build(name: str, class_map: bool = False) -> nn.Module:
    """Builds a model in evaluation."""
    if class_map:
        return ClassMap(zoo.build(name)).eval()
    return zoo.with_statistics(SegNet()) if name == "SegNet" else zoo.build(name)


def own_pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Builds one of fastseg's models with torch's ops and with fastseg's."""
    options = OWN[name][0]
    theirs = zoo.with_statistics(build_model(name, 21, backend="torch", **options))
    for parameter in theirs.parameters():
        if not parameter.any():  # FCN's scores begin at 0
            torch.nn.init.normal_(parameter, std=0.01)
    ours = build_model(name, 21, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def case_of(
    name: str,
    size: tuple[int, int],
    compiled: bool,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    class_map: bool = False,
) -> Case:
    """Returns the case of all candidates on one picture."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, *size, device=device, dtype=dtype)
    if name in OWN:
        model, ours = (m.to(device, dtype) for m in own_pair(name))
        print(f"{name} {size[0]}x{size[1]}")
    else:
        model = build(name, class_map).to(device, dtype)
        ours = copy.deepcopy(model)
        report = fastseg.optimize_(ours, mode="infer")
        print(f"{name} {size[0]}x{size[1]}: {len(report.swapped)} swapped, {len(report.left)} left")
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    ours = ours.to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    runs: dict[str, Callable] = {
        "eager": lambda: main_logits(model(x)),
        "channels_last": lambda: main_logits(last(x_last)),
        "fastseg": lambda: main_logits(ours(x_last)),
    }
    if compiled:
        frozen, fused = torch.compile(copy.deepcopy(last)), torch.compile(copy.deepcopy(ours))
        runs["compile"] = lambda: main_logits(frozen(x_last))
        runs["fastseg + compile"] = lambda: main_logits(fused(x_last))

    def check():
        exact = main_logits(copy.deepcopy(model).double()(x.double()))
        scale = 10 if class_map else exact.abs().max()

        def error(run) -> Tensor:
            if class_map:
                return (run() != exact).double().mean()
            errors = (run() - exact).abs()
            if name.lower() != "segnet":
                return errors.max()
            # A rounding may decide a near-tie in a pooling otherwise, whose unpooling then puts a
            # value into the pixel beside. torch's two layouts differ so, too.
            return errors.flatten().kthvalue(int(0.9 * errors.numel())).values

        theirs = [error(runs[name]) for name in ("eager", "channels_last")]
        bound = max(1e-4 * scale, *(2 * e for e in theirs))
        for candidate, run in runs.items():
            off = error(run)
            assert off <= bound, f"{name}: {candidate} is {off:.1e} off, at most {bound:.1e}"

    shape = f"{size[0]}x{size[1]}"
    return Case(name, shape, [Candidate(n, run) for n, run in runs.items()], check, 0)


def line(case: Case) -> str:
    """Returns a line: milliseconds of all, and our speed beside the fastest of the others."""
    milliseconds = {c.name: case.median(c.name) * 1e3 for c in case.candidates}
    others = min(v for k, v in milliseconds.items() if k not in OURS)
    best = min(v for k, v in milliseconds.items() if k in OURS)
    cells = "  ".join(f"{k} {v:.1f}" for k, v in milliseconds.items())
    ratio = others / milliseconds["fastseg"]
    return f"{case.op} {case.shape}: {ratio:.2f}x ({others / best:.2f}x with compile)  [{cells}] ms"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", action="append", choices=SIZES, help=f"default: {MAIN}")
    parser.add_argument("--all", action="store_true", help="every model")
    parser.add_argument("--own", action="store_true", help="and fastseg's own")
    parser.add_argument("--class-map", action="store_true", help="torchvision's, to the classes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes, for a quick look")
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, for each model")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    allocators.add_option(parser)
    arguments = parser.parse_args()
    if not allocators.measures_here(arguments):
        return
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    inductor.freezing = arguments.device == "cpu"
    names = arguments.model or (list(SIZES) if arguments.all else MAIN)
    if arguments.class_map:
        names = [name for name in names if name in zoo.TORCHVISION]
    sizes = {name: SIZES[name] for name in names}
    if arguments.own:
        sizes |= {name: size for name, (_, size) in OWN.items()}
    print(machine(arguments.device), "torch", torch.__version__)
    cases = []
    dtype = getattr(torch, arguments.dtype)
    for name, full in sizes.items():
        torch._dynamo.reset()
        # Multiples of 32, and the odd pixel that some have.
        size = tuple(int(n * arguments.scale) // 32 * 32 + n % 2 for n in full)
        compiled = not arguments.no_compile
        case = case_of(name, size, compiled, arguments.device, dtype, arguments.class_map)
        measure([case], arguments.device, arguments.seconds, min_rounds=5, warm_up=2)
        case = without_tensors(case)
        cases.append(case)
        print(line(case), flush=True)
        if arguments.csv:  # the next one takes long
            write_csv(arguments.csv, arguments.device, cases)


if __name__ == "__main__":
    main()
