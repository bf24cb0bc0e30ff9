"""The table at the end of a run: a line for each case, short enough for the end of an output."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

OURS = "fastseg"
WIDTH = 54
NOT_RUN = "not run"
MOST_CHARACTERS = 11_800
HEADER = (
    f"{'case':<{WIDTH}} {'us':>8} {'model':>7} {'rival':>8} {'ratio':>5} {'floor':>7} {'host':>5}"
)

COMMAND = "command"
"""The kind of a row that says how a command ended; other rows are of cases."""

Row = dict[str, object]


def read_modelled(path: Path, device: str) -> dict[str, float]:
    """Returns microseconds of calls by "OP SHAPE", as benchmarks.gpu_model wrote them.

    Args:
        path: the file of ``python -m benchmarks.gpu_model --csv FILE``; it may be missing.
        device: the name of the GPU; one that the model does not know has no modelled times.
    """
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        calls = [row for row in csv.DictReader(file) if row["kernel"] == "the call"]
    columns = [c for c in (calls[0] if calls else ()) if c.endswith("_us") and c[:-3] in device]
    return {f"{r['op']} {r['shape']}": float(r[c]) for r in calls for c in columns[:1]}


def number(value: object, digits: int = 1) -> str:
    """Returns a number of microseconds with fewer digits the larger it is; "" for none."""
    if value in ("", None):
        return ""
    value = float(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.{digits}f}"


def line(case: str, rows: Sequence[Row], modelled: dict[str, float]) -> str:
    """Returns a case's line.

    Ratio is the fastest rival's time by ours; a result that is wrong has none.
    """
    ours = next((r for r in rows if r.get("candidate") == OURS), rows[0])
    rivals = [
        float(r["gpu_us"])
        for r in rows
        if r.get("gpu_us") and not str(r["candidate"]).startswith(OURS)
    ]
    mine, status = ours.get("gpu_us"), str(ours["status"])
    rival = min(rivals, default=None)
    ratio = f"{rival / float(mine):.2f}" if rival and mine and status == "ok" else ""
    cells = (
        f"{case[:WIDTH]:<{WIDTH}} {number(mine):>8}"
        f" {number(modelled.get(str(ours.get('modelled')))):>7} {number(rival):>8} {ratio:>5}"
        f" {number(ours.get('floor_us')):>7} {number(ours.get('host_us'), 0):>5}"
    )
    if status == "ok" and mine:
        return cells
    says = ours.get("note") or ("" if mine else ours.get("candidate", "")) or ""
    return f"{cells.rstrip()} {status} {says}".rstrip()[:150]


def lines(
    rows: Sequence[Row], modelled: dict[str, float], machine: str, excerpts: Sequence[str] = ()
) -> list[str]:
    """Returns all lines: a head, commands with excerpts of their logs, cases, a count of statuses.

    Cases at the end that make it too long are left out, with a line that says so. Those that did
    not run are one line a group.
    """
    cases: dict[tuple[object, object], list[Row]] = {}
    left: dict[object, int] = {}
    counts: dict[str, int] = {}
    for row in rows:
        if row["status"] == NOT_RUN and row.get("kind") != COMMAND:
            left[row["group"]] = left.get(row["group"], 0) + 1
        else:
            cases.setdefault((row["group"], row["case"]), []).append(row)
    for of_case in cases.values():
        status = str(of_case[0]["status"])
        counts[status] = counts.get(status, 0) + 1
    end = [f"{group}: {count} not run" for group, count in left.items()]
    end.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    head = [machine]
    body = []
    for (group, case), of_case in cases.items():
        if of_case[0].get("kind") == COMMAND:
            row = of_case[0]
            seconds = f" after {row['seconds']} s" if "seconds" in row else ""
            head.append(f"{group}: {case} {row['status']}{seconds}; {row['note']}"[:150])
        else:
            body.append(line(str(case), of_case, modelled))
    head += [text[:150] for text in excerpts]
    head.append("microseconds on the GPU; rival: the fastest; host: until a call returns")
    head.append(HEADER)
    room = MOST_CHARACTERS - sum(len(text) + 1 for text in head + end) - 60
    kept: list[str] = []
    for text in body:
        room -= len(text) + 1
        if room < 0:
            end.insert(0, f"{len(body) - len(kept)} more are in figures.csv")
            break
        kept.append(text)
    return [*head, *kept, *end]
