"""The machine code of a compiled Triton kernel: how many instructions a turn of its loop takes."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.triton_aot import dumped


class Run(NamedTuple):
    """Instructions that no jump enters or leaves but at their ends.

    Attributes:
        instructions: their number.
        marked: the number of those that are looked for.
        following: the addresses at which the code goes on.
    """

    instructions: int
    marked: int
    following: tuple[int, ...]


def fewest_instructions(kernel, marked: str) -> float:
    """The instructions a warp issues in a turn of a loop, for each one that is looked for.

    Of all ways around the loop the shortest counts: what a branch skips in most turns is left out,
    and so is what one warp does for all, or waits for.

    Args:
        kernel: a compiled kernel.
        marked: the beginning of the instructions that are looked for, such as "MUFU.EX2".
    """
    runs = dict(runs_of(dumped(kernel, "-sass"), marked))
    starts = sorted(runs, key=lambda address: -runs[address].marked)
    turns = (shortest_turn(runs, start) for start in starts if runs[start].marked > 0)
    found = next((turn for turn in turns if turn is not None), None)
    assert found is not None, f"{marked} is in no loop"
    return found[0] / found[1]


def shortest_turn(runs: dict[int, Run], start: int) -> tuple[int, int] | None:
    """Instructions and marked ones of the shortest way from a run back to it, or None."""
    queue = [(runs[start].instructions, runs[start].marked, start)]
    seen = set()
    while queue:
        instructions, marked, address = heapq.heappop(queue)
        for after in runs[address].following:
            if after == start:
                return instructions, marked
            if after in runs and after not in seen:
                seen.add(after)
                run = runs[after]
                heapq.heappush(queue, (instructions + run.instructions, marked + run.marked, after))
    return None


def runs_of(sass: str, marked: str) -> Iterator[tuple[int, Run]]:
    """The runs of a kernel's code, by the addresses of their first instructions."""
    code = [
        (int(address, 16), text)
        for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE)
    ]
    jumps = {address: int(to[1], 16) for address, text in code if (to := JUMP.search(text))}
    next_of = dict(zip((a for a, _ in code), (a for a, _ in code[1:]), strict=False))
    starts = {code[0][0], *jumps.values(), *(next_of[a] for a in jumps if a in next_of)}
    first, count, found = code[0][0], 0, 0
    for address, text in code:
        count += 1
        found += re.sub(r"^@!?U?P\w+\s+", "", text).startswith(marked)
        after = next_of.get(address)
        if address not in jumps and after is not None and after not in starts:
            continue
        following = [jumps[address]] if address in jumps else []
        if after is not None and not ENDS.match(text):
            following.append(after)
        yield first, Run(count, found, tuple(following))
        first, count, found = after, 0, 0


JUMP = re.compile(r"\bBRA\b.*?\b(0x[0-9a-f]+)")
ENDS = re.compile(r"(BRA(\.\w+)* 0x|EXIT|RET)")
"""Instructions after which the code never goes on at the next one."""
