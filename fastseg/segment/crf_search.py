"""Search of a dense CRF's bandwidths and weights, one after the other, by the mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastseg._core.pairwise import PairwiseBilateral, PairwiseGaussian

PARAMETERS = (
    ("bilateral", 2, "bilateral weight"),
    ("bilateral", 1, "bilateral srgb"),
    ("bilateral", 0, "bilateral sxy"),
    ("gaussian", 1, "gaussian weight"),
    ("gaussian", 0, "gaussian sxy"),
)
"""Option, place in it and title of each number, in the order in which they are searched."""

STEPS = (2.0, 2**0.5, 2**0.25)
"""Factor between neighbouring values in each round of the search."""

POWERS = (-2, -1, 1, 2)
"""Powers of the step by which a number is multiplied."""

DIGITS = 3
"""Significant digits of the numbers that are tried."""


@dataclass(frozen=True)
class CRFSetting:
    """The numbers of a dense CRF's two terms.

    Attributes:
        gaussian: bandwidth in pixels and weight of the term of smoothness.
        bilateral: bandwidths in pixels and in colours, and weight of the term of appearance.
    """

    gaussian: tuple[float, float] = (3.0, 3.0)
    bilateral: tuple[float, float, float] = (80.0, 13.0, 10.0)

    def terms(self) -> list[PairwiseGaussian | PairwiseBilateral]:
        """Returns the terms; one of weight 0 is left out."""
        terms: list[PairwiseGaussian | PairwiseBilateral] = []
        if self.gaussian[-1] != 0:
            terms.append(PairwiseGaussian(*self.gaussian))
        if self.bilateral[-1] != 0:
            terms.append(PairwiseBilateral(*self.bilateral))
        return terms

    def scaled(self, option: str, place: int, factor: float) -> CRFSetting:
        """Returns the setting with one of its numbers multiplied."""
        values = list(getattr(self, option))
        values[place] = float(f"{values[place] * factor:.{DIGITS}g}")
        both = {"gaussian": self.gaussian, "bilateral": self.bilateral, option: tuple(values)}
        return CRFSetting(**both)


@dataclass(frozen=True)
class Line:
    """The search along one number.

    Attributes:
        title: the number's name.
        step: the factor between its neighbouring values.
        best: the best setting after it.
        score: its mean IoU.
    """

    title: str
    step: float
    best: CRFSetting
    score: float


@dataclass
class Search:
    """A search from a setting on.

    Attributes:
        tried: the mean IoU of each setting, in the order in which they were tried.
        lines: the search along each number, in order.
    """

    tried: dict[CRFSetting, float] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    @property
    def best(self) -> CRFSetting:
        """The setting with the highest score; of several, the one that was tried first."""
        return max(self.tried, key=self.tried.__getitem__)


def candidates(setting: CRFSetting, option: str, place: int, step: float) -> list[CRFSetting]:
    """Returns the settings around one along a number."""
    return [setting.scaled(option, place, step**power) for power in POWERS]


def search(
    start: CRFSetting,
    score: Callable[[Sequence[CRFSetting]], list[float]],
    rounds: int = len(STEPS),
    on_line: Callable[[Line], object] = lambda line: None,
) -> Search:
    """Searches the bandwidths and weights with the highest score, one number after the other.

    In each round every number is tried at half to four times its value and the like, with factors
    of 2 in the first round, of its square root in the second, of its fourth root in the third. A
    number changes only where the score rises. The same scores give the same search.

    Args:
        start: the first setting.
        score: returns the scores of settings, none of which was scored before.
        rounds: how often all numbers are searched, 0 to 3.
        on_line: called after each number.

    Raises:
        ValueError: rounds out of range.
    """
    if not 0 <= rounds <= len(STEPS):
        raise ValueError(f"rounds must be 0 to {len(STEPS)}, got {rounds}")
    found = Search({start: score([start])[0]})
    for step in STEPS[:rounds]:
        for option, place, title in PARAMETERS:
            around = candidates(found.best, option, place, step)
            new = [c for c in dict.fromkeys(around) if c not in found.tried]
            if new:
                found.tried |= zip(new, score(new), strict=True)
            found.lines.append(Line(title, step, found.best, found.tried[found.best]))
            on_line(found.lines[-1])
    return found
