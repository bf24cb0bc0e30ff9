"""Show what fastseg.optimize_ makes of a model, whether its outputs stay, and how fast it becomes.

MODEL is your own, package.module:name, where the current folder is importable: a module, or a class
or a function that makes one; or smp:NAME, torchvision:NAME or timm:NAME with random weights; one of
fastseg's networks; or a checkpoint that ``fastseg segment --weights`` takes. Nothing of it changes
on disk. Where outputs differ by more than rounding, nothing is timed and the exit status is 1.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastseg._core.atomic import atomic_write
from fastseg._core.devices import named_device
from fastseg._core.version import __version__
from fastseg.cli import runtimes
from fastseg.cli.agreement import Agreement, agreement, tensors_of
from fastseg.cli.named_model import NamedModel, first_line, load_named
from fastseg.cli.options import (
    add_config_option,
    add_machine_options,
    add_model_option,
    use_threads,
)
from fastseg.cli.running import UNFINISHED
from fastseg.cli.timing import Row, interleaved_medians, speedups, table
from fastseg.optimize import Report, optimize_

EXAMPLES = """examples:
  fastseg optimize nets.mine:Network --option classes=19 --input 1,3,512,1024
  fastseg optimize smp:Unet --option encoder_name=resnet34 --compile --threads 2
  fastseg optimize run/best.pt --json times.json
"""

DEFAULT_INPUT = "1,3,512,512"

MAX_SIZE = 2**63 - 1
"""Greatest size of an input's dimension that torch can hold."""

DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")

CONTIGUOUS, CHANNELS_LAST, OPTIMISED = "eager, contiguous", "eager, channels_last", "optimised"
EAGER = (CONTIGUOUS, CHANNELS_LAST)


@dataclass(frozen=True)
class InputSpec:
    """What an input is, from ``--input``."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def tensor(self, device: torch.device) -> Tensor:
        """Returns random numbers: normal ones, or zeros and ones of an integer dtype."""
        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return torch.randn(self.shape, device=device).to(dtype)
        return torch.randint(0, 2, self.shape, device=device).to(dtype)

    def __str__(self) -> str:
        return f"{','.join(map(str, self.shape))} {self.dtype}"


def input_spec(text: str) -> InputSpec:
    """Returns what ``SIZES[:DTYPE]`` says, such as ``1,3,512,512`` or ``1,77:int64``.

    Raises:
        argparse.ArgumentTypeError: the text does not have this form.
    """
    sizes, colon, dtype = text.partition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes such as {DEFAULT_INPUT}")
    if max(shape) > MAX_SIZE:
        raise argparse.ArgumentTypeError(f"{text!r}: a size is at most {MAX_SIZE}")
    if colon and dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: the dtype is one of {', '.join(DTYPES)}")
    return InputSpec(shape, dtype) if colon else InputSpec(shape)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg optimize`."""
    parser.add_argument("model", metavar="MODEL", help="package.module:name, smp:NAME, a file, ...")
    parser.add_argument(
        "--input",
        action="append",
        type=input_spec,
        metavar="SIZES[:DTYPE]",
        dest="inputs",
        help=f"sizes of an argument of the model (default: {DEFAULT_INPUT}), and its dtype "
        "(float32); given again for a further argument",
    )
    add_model_option(parser)
    parser.add_argument(
        "--compile", action="store_true", help="time torch.compile, too, which takes a minute"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")
    add_machine_options(parser)
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Optimises a copy of the model; returns 1 if its outputs are others."""
    _check_file(options.json)
    use_threads(options.threads)
    device = named_device(options.device)
    specs = options.inputs or [input_spec(DEFAULT_INPUT)]
    if device.type == "cuda":  # float32 is that on both sides, in outputs and in times
        torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    inputs = _inputs(specs, device)
    named = load_named(options.model, dict(options.options))
    with torch.no_grad():
        trial = Trial(named, inputs, device)
        shown = ", ".join(map(str, specs))
        threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else ""
        print(f"{named.name} on {', '.join(filter(None, [shown, str(device), threads]))}\n")
        print(trial.report or f"{named.name} is of fastseg, and computes by its ops already")
        print(f"\noutputs {trial.agreement}")
        agrees = trial.agreement.within(trial.rounding)
        rows = trial.rows(options.compile) if agrees else []
    if not agrees:
        print("these are other outputs: nothing is timed")
    else:
        if trial.agreement.largest == 0:
            print("note: outputs that are 0 or not finite say little; a new network may have them")
        print(f"\n{table(rows, EAGER, 'the faster eager')}")
    if options.json:
        told = _as_json(named, specs, device, trial, agrees, rows)
        with atomic_write(options.json) as file:
            file.write(json.dumps(told, indent=1).encode())
        print(f"written to {options.json}")
    return 0 if agrees else UNFINISHED


def _check_file(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path}: cannot be written (it is a folder)")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: cannot be written (there is no folder {path.parent})")


def _inputs(specs: Sequence[InputSpec], device: torch.device) -> list[Tensor]:
    try:
        return [spec.tensor(device) for spec in specs]
    except RuntimeError as error:  # there is no room
        raise ValueError(f"--input {', '.join(map(str, specs))}: {first_line(error)}") from error


class Trial:
    """A model in torch's two layouts and optimised, and how its outputs agree.

    Attributes:
        report: of :func:`fastseg.optimize_`; None for a network whose ops are fastseg's already.
        agreement: of the optimised model's outputs with the model's.
        rounding: of the outputs of torch's two layouts.
    """

    def __init__(self, named: NamedModel, inputs: Sequence[Tensor], device: torch.device):
        self.device = device
        self.given = inputs
        self.inputs = [x.clone() for x in inputs]
        self.last_inputs = [_channels_last(x) for x in inputs]
        self.model = named.model
        self.model.to(device)
        # Once before it is copied: lazy parameters get their shapes.
        self._outputs(named.name)
        try:
            self.last = copy.deepcopy(self.model)
            self.ours = named.ours or copy.deepcopy(self.model)
        except Exception as error:  # of any kind, for the model's own members are copied
            raise ValueError(f"{named.name} cannot be copied: {first_line(error)}") from error
        self.report: Report | None = None
        if named.ours is None:
            self.report = optimize_(self.ours, mode="infer")
        for model in (self.last, self.ours):
            model.to(device, memory_format=torch.channels_last)
        self.expected = [x.clone() for x in self._outputs(named.name)]
        self.rounding = self._against(lambda: self.last(*self.last_inputs))
        self.agreement = self._against(lambda: self.ours(*self.last_inputs))

    def _reset(self) -> None:
        """Makes the next call like the first, for models that draw or write into their inputs."""
        torch.manual_seed(0)
        for mine in (self.inputs, self.last_inputs):
            for x, given in zip(mine, self.given, strict=True):
                x.copy_(given)

    def _outputs(self, name: str) -> list[Tensor]:
        """Returns the model's output; of what its own code raises, the first line."""
        self._reset()
        try:
            output = self.model(*self.inputs)
        except (Exception, SystemExit) as error:
            raise ValueError(f"{name} cannot compute this input: {first_line(error)}") from error
        return tensors_of(output)

    def _against(self, call: Callable[[], object]) -> Agreement:
        self._reset()
        try:
            return agreement(self.expected, tensors_of(call()))
        except Exception as error:  # the model's own code may rely on a layout
            return Agreement(problem=f"are missing, for the model raises {first_line(error)}")

    def rows(self, with_compile: bool) -> list[Row]:
        """Times each way that runs and computes the same, all of them in turns."""
        model, ours = self.model, self.ours
        makers: dict[str, Callable[[], runtimes.Run]] = {
            CONTIGUOUS: lambda: lambda: model(*self.inputs),
            CHANNELS_LAST: lambda: lambda: self.last(*self.last_inputs),
            OPTIMISED: lambda: lambda: ours(*self.last_inputs),
            "torch.compile": lambda: runtimes.compiled(self.last, self.last_inputs),
            "optimised, torch.compile": lambda: runtimes.compiled(ours, self.last_inputs),
            "ONNX Runtime": lambda: runtimes.onnx_runtime(model, self.inputs),
            "OpenVINO": lambda: runtimes.openvino(model, self.inputs),
        }
        runs: dict[str, Callable[[], object]] = {}
        reasons = {}
        for name, make in makers.items():
            if "torch.compile" in name and not with_compile:
                reasons[name] = "--compile times it"
                continue
            self._reset()
            try:
                with runtimes.quiet():
                    made = make()
                    found = agreement(self.expected, tensors_of(made()))
            except Exception as error:  # of another package, which may refuse a model with any
                told = type(error) is ValueError  # from runtimes, whose text is enough
                reasons[name] = str(error) if told else f"does not run: {first_line(error)}"
                continue
            if found.within(self.rounding):
                runs[name] = made
            else:
                reasons[name] = f"has other outputs: they {found}"
        medians = interleaved_medians(runs, self.device)
        return [Row(name, medians.get(name), reasons.get(name, "")) for name in makers]


def _channels_last(x: Tensor) -> Tensor:
    """Returns a copy, in channels_last if it is a picture or a batch of them."""
    if x.dim() == 4:
        return x.clone(memory_format=torch.channels_last)
    return x.clone()


def _as_json(
    named: NamedModel,
    specs: Sequence[InputSpec],
    device: torch.device,
    trial: Trial,
    agrees: bool,
    rows: Sequence[Row],
) -> dict[str, object]:
    """Returns all that was printed; times are in milliseconds."""
    report = trial.report and {
        "mode": trial.report.mode,
        **{
            part: [entry._asdict() for entry in getattr(trial.report, part)]
            for part in ("swapped", "in_evaluation", "left")
        },
        "notes": trial.report.notes,
    }
    ratios = speedups(rows, EAGER) if rows else {}
    return {
        "model": named.name,
        "inputs": [asdict(spec) for spec in specs],
        "device": str(device),
        "threads": torch.get_num_threads(),
        "fastseg": __version__,
        "torch": torch.__version__,
        "report": report,
        "agrees": agrees,
        "agreement": {
            key: str(value) if value == float("inf") else value  # JSON has no infinity
            for key, value in asdict(trial.agreement).items()
        },
        "times": [
            {
                "name": row.name,
                "milliseconds": None if row.seconds is None else row.seconds * 1e3,
                "speedup": ratios.get(row.name),
                "reason": row.reason,
            }
            for row in rows
        ],
    }
