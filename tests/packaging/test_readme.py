"""The README: its examples run, its ratios are those of the committed figures, and it is short."""

from __future__ import annotations

import csv
import re

import pytest
import torch

from tests.packaging.pages import README, ROOT, blocks, run_examples

MACHINE = "amd_epyc_avx512_2_threads"
TORCH = (
    "eager",
    "channels_last",
    "compile",
    "eager contiguous",
    "eager channels_last",
    "torch.compile",
)
"""Names of torch's candidates in the CSV files."""

RATIOS = {
    "torchvision's deeplabv3_resnet50": (f"optimize-{MACHINE}", "deeplabv3_resnet50", "fastseg"),
    "segmentation_models_pytorch's Unet": (f"optimize-{MACHINE}", "Unet", "fastseg"),
    "its DeepLabV3Plus": (f"optimize-{MACHINE}", "DeepLabV3Plus", "fastseg + compile"),
    "SegNet with MaxUnpool2d": (f"optimize-{MACHINE}", "SegNet", "fastseg"),
    "ASPP of DeepLab v3": (f"atrous_conv2d-{MACHINE}", "aspp", "fastseg"),
    "max-pooling with positions": (f"pooling-{MACHINE}_float32", "max_pool2d", "fastseg"),
    "dense CRF": (f"dense_crf-{MACHINE}", "dense_crf", "compat"),
}
"""By how a row of the table begins: the file, the op, fastseg's candidate."""

SHAPES = {
    "aspp": "1x2048x65x65 -> 256, rates (12, 24, 36)",
    "max_pool2d": "contiguous float32",
    "dense_crf": "500x375x21, 3, 80/13, 10 iterations",
}
"""How the shape ends of the cases that a row is about, where the op has several."""


def test_examples_run():
    assert len(blocks(README, "python")) >= 4
    conv = torch.nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False)
    model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    namespace = run_examples(README, {"model": model})  # of the first example: the reader's
    assert namespace["report"].swapped
    assert namespace["x"].grad is not None
    assert namespace["q"].shape == (1, 21, 60, 80)


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 150


def ratio(file: str, op: str, ours: str) -> float:
    """How many times as fast as the fastest rival a candidate is, summed over an op's cases."""
    times: dict[str, float] = {}
    with (ROOT / "benchmarks" / "results" / f"{file}.csv").open(newline="") as rows:
        for row in csv.DictReader(rows):
            if row["op"] == op and row["shape"].endswith(SHAPES.get(op, "")):
                times.setdefault(row["candidate"], 0)
                times[row["candidate"]] += float(row["median_us"])
    rivals = ("pydensecrf",) if op == "dense_crf" else TORCH
    return min(t for name, t in times.items() if name in rivals) / times[ours]


@pytest.mark.parametrize("label", RATIOS)
def test_ratios_are_those_of_the_committed_figures(label):
    (row,) = re.findall(rf"^\| {re.escape(label)}.*$", README.read_text(), flags=re.M)
    (shown,) = re.findall(r"\*\*([\d.]+)x\*\*", row)
    assert shown == f"{ratio(*RATIOS[label]):.1f}"


def test_every_ratio_is_tested():
    assert len(re.findall(r"\*\*[\d.]+x\*\*", README.read_text())) == len(RATIOS)
