"""Tables and plots of the committed figures, written before Sphinx reads the pages.

The figures are the CSV files of ``benchmarks/results``, one row for each candidate of each case.
Pages include the tables: ``{include} /_generated/pooling.md``. Nothing is left out: a case in which
a rival is faster stands in the table of its op and once more among the losses.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
GENERATED = ROOT / "docs" / "_generated"

OURS = ("fastseg", "fastseg contiguous", "fastseg + compile", "drop-in", "compat", "high")
"""Names of the candidates that are fastseg's; all others are rivals."""

MODELS = {
    "deeplabv3_resnet50": "torchvision deeplabv3_resnet50",
    "deeplabv3_resnet101": "torchvision deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large": "torchvision deeplabv3_mobilenet_v3_large",
    "fcn_resnet50": "torchvision fcn_resnet50",
    "lraspp_mobilenet_v3_large": "torchvision lraspp_mobilenet_v3_large",
    "DeepLabV3Plus": "smp DeepLabV3Plus MobileNetV2",
    "Unet": "smp Unet ResNet-34",
    "DeepLabV3": "smp DeepLabV3 ResNet-18",
    "PAN": "smp PAN ResNet-18",
    "SegNet": "a SegNet with MaxUnpool2d",
    "fcn8s": "fastseg's own fcn8s on VGG16",
    "unet": "fastseg's own unet",
}
"""What the benchmark of whole models calls them, and what a reader does."""


@dataclass(frozen=True)
class Case:
    """One op on one shape, or a sum of such.

    Attributes:
        op: name of the op or model.
        shape: the shape and what else tells the case from others.
        milliseconds: the median time of each candidate.
        gigabytes: bytes that the op must move at least, in GB; 0 where nobody counted.
    """

    op: str
    shape: str
    milliseconds: dict[str, float]
    gigabytes: float

    def best(self, ours: bool) -> float:
        """Returns the time of the fastest candidate, fastseg's or the rivals', in milliseconds."""
        return min(t for name, t in self.milliseconds.items() if (name in OURS) == ours)

    @property
    def ratio(self) -> float:
        """How many times as fast as the fastest rival fastseg's fastest candidate is."""
        return self.best(ours=False) / self.best(ours=True)


def read(name: str) -> list[Case]:
    """Returns the cases of a file of ``benchmarks/results`` in its order, by the file's name."""
    cases: dict[tuple[str, str], Case] = {}
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["op"], row["shape"]
            case = cases.setdefault(key, Case(*key, {}, float(row["floor_bytes"]) / 1e9))
            case.milliseconds[row["candidate"]] = float(row["median_us"]) / 1e3
    return list(cases.values())


def total(cases: Iterable[Case], op: str, shape: str) -> Case:
    """Returns the sum of cases that have the same candidates."""
    cases = list(cases)
    names = cases[0].milliseconds
    milliseconds = {name: sum(c.milliseconds[name] for c in cases) for name in names}
    return Case(op, shape, milliseconds, sum(c.gigabytes for c in cases))


def pooling_by_layout(cases: Iterable[Case]) -> list[Case]:
    """Returns the sums over SegNet's levels at both sizes, a case for each op and layout."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if "float32" in case.shape:  # not the small tensor that measures the cost of a call
            groups.setdefault((case.op, case.shape.split()[1]), []).append(case)
    return [total(members, *key) for key, members in groups.items()]


def time(milliseconds: float | None) -> str:
    """Returns a time as a table shows it, with three digits."""
    if milliseconds is None:
        return ""
    if milliseconds < 1:
        return f"{1e3 * milliseconds:.0f} us"
    digits = max(0, 2 - len(str(int(milliseconds))) + 1)
    return f"{milliseconds:.{digits}f} ms"


def table(header: Iterable[str], rows: Iterable[Iterable[str]], texts: int = 1) -> str:
    """Returns a table in Markdown; its first `texts` columns are text, the others numbers."""
    header = list(header)
    lines = [header, ["---" if i < texts else "---:" for i in range(len(header))], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def ratio_table(
    cases: Iterable[Case], columns: dict[str, str], label: Callable[[Case], str]
) -> str:
    """Returns a table of times, a row for each case, with the ratio to the fastest rival.

    Args:
        cases: the rows.
        columns: the columns' titles, by the name of the candidate.
        label: a function that names a case.
    """
    rows = [
        [label(c), *(time(c.milliseconds.get(name)) for name in columns), f"**{c.ratio:.2f}x**"]
        for c in cases
    ]
    return table(["", *columns.values(), "beside the fastest rival"], rows)


def plot(name: str, cases: list[Case], label: Callable[[Case], str]) -> str:
    """Writes bars of the ratios as SVG and returns the Markdown that shows them."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = name  # the same file from the same figures
    ratios = [case.ratio for case in cases]
    figure, axes = plt.subplots(figsize=(8, 0.7 + 0.28 * len(cases)), layout="constrained")
    colours = ["#2a7f62" if ratio >= 1 else "#b5442e" for ratio in ratios]
    bars = axes.barh([label(case) for case in cases], ratios, color=colours)
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("times as fast as the fastest rival (1: equal)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(GENERATED / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    return f"![Ratios to the fastest rival](/_generated/{name}.svg)\n"


def op_and_shape(case: Case) -> str:
    """Names a case by its op and its shape."""
    return f"{case.op}, {case.shape}"


def model(case: Case) -> str:
    """Names a case of whole models as a reader does."""
    return f"{MODELS[case.op]}, {case.shape}"


class Figures:
    """The cases that were measured on one machine.

    Args:
        machine: the machine's name in the files' names.
        with_convolution: whether convolutions were measured there.
    """

    def __init__(self, machine: str, with_convolution: bool = True):
        self.convolution = read(f"atrous_conv2d-{machine}") if with_convolution else []
        self.crf = read(f"dense_crf-{machine}")
        self.models = read(f"optimize-{machine}")
        self.levels = read(f"pooling-{machine}_float32")
        self.pooling = pooling_by_layout(self.levels)

    def plots(self, suffix: str) -> dict[str, str]:
        """Returns the plots by the names of their files, which end in a suffix."""
        kinds = {
            "convolution": (self.convolution, op_and_shape),
            "pooling": (self.pooling, op_and_shape),
            "crf": (self.crf, lambda case: case.shape),
            "models": (self.models, model),
        }
        return {
            f"{name}_plot{suffix}": plot(f"{name}{suffix}", cases, label)
            for name, (cases, label) in kinds.items()
            if cases
        }

    def losses(self, *more: Case) -> str:
        """Returns a table of the cases, and of more, in which a rival was faster."""
        cases = (*self.convolution, *more, *self.crf, *self.models, *self.levels)
        slower = sorted((c for c in cases if c.ratio < 1), key=lambda case: case.ratio)
        return table(
            ["", "fastseg", "fastest rival", "ratio"],
            [
                [op_and_shape(c), time(c.best(True)), time(c.best(False)), f"{c.ratio:.2f}x"]
                for c in slower
            ],
        )


def write_tables() -> None:
    """Writes every table and plot to ``docs/_generated``."""
    figures = Figures("amd_epyc_avx512_2_threads")
    older = Figures("amd_epyc_avx2_2_threads", with_convolution=False)
    grid = read("atrous_conv2d_grid-amd_epyc_avx512_2_threads")
    rivals = {
        "eager contiguous": "eager, contiguous",
        "eager channels_last": "eager, channels_last",
        "torch.compile": "torch.compile",
    }
    conv_columns = {
        "fastseg": "fastseg",
        "fastseg contiguous": "fastseg, contiguous",
        **rivals,
    }
    pool_columns = {"fastseg": "fastseg", "eager": "eager", "torch.compile": "torch.compile"}
    model_columns = {
        "eager": "eager",
        "channels_last": "channels_last",
        "compile": "torch.compile",
        "fastseg": "fastseg",
        "fastseg + compile": "fastseg and compile",
    }
    crf_columns = {
        "pydensecrf": "pydensecrf",
        "drop-in": "`compat.pydensecrf`",
        "compat": '`"compat"`',
        "high": '`"high"`',
    }
    ordered = sorted(grid, key=lambda case: case.ratio)
    bandwidth = table(
        ["", "GB/s of the floor"],
        [
            [op_and_shape(c), f"{1e3 * c.gigabytes / c.best(ours=True):.1f}"]
            for c in figures.pooling
        ],
    )
    summary = (
        f"{len(grid)} shapes, {sum(c.ratio < 1 for c in grid)} of them slower than the fastest"
        f" rival; the median is {ordered[len(grid) // 2].ratio:.2f}x, the lowest"
        f" {ordered[0].ratio:.2f}x, the highest {ordered[-1].ratio:.2f}x.\n"
    )
    aspps = [c for c in figures.convolution if c.op == "aspp"]
    files = {
        "convolution": ratio_table(figures.convolution, conv_columns, op_and_shape),
        "aspp": ratio_table(aspps, conv_columns, op_and_shape),
        "grid": ratio_table(ordered, conv_columns, op_and_shape),
        "grid_summary": summary,
        "pooling": ratio_table(figures.pooling, pool_columns, op_and_shape),
        "pooling_bandwidth": bandwidth,
        "crf": ratio_table(figures.crf, crf_columns, lambda case: case.shape),
        "models": ratio_table(figures.models, model_columns, model),
        "losses": figures.losses(*grid),
        "losses_avx2": older.losses(),
        **figures.plots(""),
        **older.plots("_avx2"),
    }
    for name, text in files.items():
        (GENERATED / f"{name}.md").write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Writes the tables when Sphinx starts."""
    GENERATED.mkdir(exist_ok=True)
    app.connect("builder-inited", lambda app: write_tables())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
