"""What :func:`fastseg.optimize_` did."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from fastseg.optimize.blocks.modules import Fused
from fastseg.optimize.classify.steps import Kind
from fastseg.optimize.plan import Plan

LINES = 30
"""Number of lines that ``str(report)`` has at most."""

NAMED = 3
"""Number of modules of a group that are named."""


class Entry(NamedTuple):
    """A module and what happened to it.

    Attributes:
        name: the module's name in the model, "" for the model itself.
        module: the name of its class, or of a function that it calls.
        detail: what it became, or why it was left.
    """

    name: str
    module: str
    detail: str


@dataclass
class Report:
    """What was swapped and what was left; ``str(report)`` is a table of 30 lines at most.

    Attributes:
        mode: "train" or "infer".
        dry_run: whether nothing was changed.
        swapped: an entry for each convolution, ASPP, pooling, and class map or loss of upsampled
            logits, that fastseg now computes.
        in_evaluation: in mode "train", an entry for each convolution that torch's kernel computes
            in training, and fastseg with what follows it in evaluation without gradients.
        left: an entry for each that fastseg does not compute, and for batch norms that stay on
            their own.
        notes: what costs time nevertheless.
    """

    mode: str
    dry_run: bool
    swapped: list[Entry] = field(default_factory=list)
    in_evaluation: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _model: weakref.ref | None = field(default=None, repr=False, compare=False)

    @property
    def changed(self) -> list[Entry]:
        """The blocks that run their own forwards, for they were changed since, and how."""
        model = None if self._model is None else self._model()
        if model is None:
            return []
        return [
            Entry(name, m._base.__name__, why_not)
            for name, m in model.named_modules()
            if isinstance(m, Fused) and (why_not := m.why_not_fused()) is not None
        ]

    def table(self, lines: int | None = LINES) -> str:
        """The report as text: a title, a row for each group of like entries, and the notes.

        Args:
            lines: the largest number of lines; None prints all of them, and all names.
        """
        parts = {
            "swapped": self.swapped,
            "left": self.left,
            "in evaluation": self.in_evaluation,
            "changed": self.changed,
        }
        counts = [f"{len(entries)} {what}" for what, entries in parts.items()
                  if entries or what in ("swapped", "left")]  # fmt: skip
        dry = ", dry run" if self.dry_run else ""
        title = f"fastseg.optimize_, mode {self.mode}{dry}: {', '.join(counts)}"
        most = None if lines is None else NAMED
        rows = [
            (what, _names(names, most), *group)
            for what, entries in parts.items()
            for group, names in _groups(entries)
        ]
        notes = [f"note: {note}" for note in self.notes]
        room = len(rows) if lines is None else max(0, lines - 1 - len(notes))
        cut = []
        if len(rows) > room:
            kept, rest = rows[: room - 1], len(rows) - room + 1
            rows, cut = kept, [f"and {rest} groups more: print(report.table(None))"]
        return "\n".join([title, *_aligned(rows), *cut, *notes][:lines])

    def __str__(self) -> str:
        return self.table()

    def __getstate__(self):
        return {**self.__dict__, "_model": None}  # a weak reference lives in this process alone


def _groups(entries: Iterable[Entry]) -> list[tuple[tuple[str, str], list[str]]]:
    """Pairs of class and detail with the names of their modules, the largest groups first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((entry.module, entry.detail), []).append(entry.name or "(model)")
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _names(names: list[str], most: int | None) -> str:
    if len(names) == 1:
        return names[0]
    shown = names if most is None or len(names) <= most else [*names[: most - 1], "..."]
    return f"{len(names)}: {', '.join(shown)}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]


def report_of(plan: Plan, dry_run: bool) -> Report:
    """The report of a plan."""
    report = Report(plan.mode, dry_run)
    for module in plan.modules:
        name, kind = plan.names[module], type(module).__name__
        detail = _computed(plan, module)
        if detail is not None:
            torchs = isinstance(module, nn.Conv2d) and module not in plan.swapped
            entries = report.in_evaluation if torchs else report.swapped
            entries.append(Entry(name, kind, detail))
        elif (reason := _why_left(plan, module)) is not None:
            report.left.append(Entry(name, kind, reason))
        for function, reason in plan.functions.get(module, ()):
            entries = report.swapped if reason is None else report.left
            entries.append(Entry(name, function, reason or "byte codes"))
        for reader, becomes, reason in plan.heads.get(module, Counter()).elements():
            entries = report.swapped if reason is None else report.left
            entries.append(Entry(name, reader, reason or becomes))
    report.notes = _notes(plan, report)
    if not dry_run:
        report._model = weakref.ref(plan.model)
    return report


def _computed(plan: Plan, module: nn.Module) -> str | None:
    """What fastseg computes in place of a module, or None."""
    if module in plan.with_aspp:
        return "fastseg.aspp"
    if module in plan.pools.found:
        return "byte codes"
    if module in plan.in_chain:
        return plan.in_chain[module]
    return "conv" if module in plan.swapped else None


def _why_left(plan: Plan, module: nn.Module) -> str | None:
    """Why a module is left, or None for one that nobody expects to be computed."""
    if module in plan.pools.left:
        return plan.pools.left[module]
    step = plan.steps[module]
    if step.kind is Kind.TRANSPOSED_CONV:
        return step.why_not
    if step.kind is Kind.CONV:
        if not plan.wanted(module):
            return "filter_fn"
        return step.why_not or "torch's is as fast in training"
    if step.kind is Kind.BATCH_NORM and module not in plan.folded:
        return step.why_not or _why_alone(plan, module)
    return None


def _why_alone(plan: Plan, bn: nn.Module) -> str:
    """Why a batch norm is in no chain."""
    if bn in plan.alone:
        return plan.alone[bn]
    name = plan.names[bn]
    while name:
        name = name.rpartition(".")[0]
        block = plan.model.get_submodule(name)
        if block in plan.untraceable:
            return f"in {type(block).__name__}: {plan.untraceable[block]}"
    return "is not called"


def _notes(plan: Plan, report: Report) -> list[str]:
    """What costs time although, or because, convolutions are fastseg's."""
    convs = [m for m in plan.modules if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    ours = [m for m in convs if m in plan.in_chain or m in plan.swapped]
    notes = []
    if ours and len(ours) < len(convs):
        left = len(convs) - len(ours)
        notes.append(f"{left} of {len(convs)} convolutions are left: they take as long as before")
    if report.in_evaluation:
        count = len(report.in_evaluation)
        notes.append(f"{count} of {len(convs)} convolutions take as long as before in training")
    if plan.mode == "infer" and any(m.weight.is_cpu for m in ours):
        notes.append(
            "convolutions compute in channels_last: what comes in another layout, such as the"
            " model's input, is converted in each call"
        )
    return notes
