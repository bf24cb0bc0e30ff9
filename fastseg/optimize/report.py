"""What :func:`fastseg.optimize_` did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Entry(NamedTuple):
    """A module and what happened to it."""

    name: str  # in the model, "" for the model itself
    module: str  # the name of its class, or of a function that it calls
    detail: str  # what it became, or why it was left


@dataclass
class Report:
    """What was swapped and what was left; ``str(report)`` is a table.

    Attributes:
        mode: "train" or "infer".
        dry_run: whether nothing was changed.
        swapped: an entry for each convolution, ASPP and pooling that fastseg now computes.
        left: an entry for each that it does not, and for batch norms that stay on their own.
    """

    mode: str
    dry_run: bool
    swapped: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)

    def __str__(self) -> str:
        title = f"fastseg.optimize_, mode {self.mode}{', dry run' if self.dry_run else ''}: "
        lines = [f"{title}{len(self.swapped)} swapped, {len(self.left)} left"]
        rows = [("swapped", *e) for e in self.swapped] + [("left", *e) for e in self.left]
        rows = [(what, name or "(model)", module, detail) for what, name, module, detail in rows]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[3]]))
        return "\n".join(lines)
