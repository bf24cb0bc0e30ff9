"""The search of a CRF's numbers, on scores that are known."""

from __future__ import annotations

import math

import pytest

from fastseg._core.pairwise import PairwiseBilateral, PairwiseGaussian
from fastseg.segment.crf_search import PARAMETERS, CRFSetting, search

AIM = CRFSetting((1.5, 6.0), (40.0, 20.0, 5.0))


def closeness(setting: CRFSetting) -> float:
    """A score with one peak: minus the squared distance of logarithms."""
    pairs = zip(
        (*setting.gaussian, *setting.bilateral), (*AIM.gaussian, *AIM.bilateral), strict=True
    )
    return -sum(math.log(a / b) ** 2 for a, b in pairs)


def searched(rounds=3, start=CRFSetting()):  # noqa: B008 (nothing changes it)
    calls = []

    def score(settings):
        calls.extend(settings)
        return [closeness(setting) for setting in settings]

    return search(start, score, rounds), calls


def test_the_peak_is_found_within_the_last_step():
    found, _ = searched()
    for option, place, _ in PARAMETERS:
        ratio = getattr(found.best, option)[place] / getattr(AIM, option)[place]
        assert 2**-0.25 * 0.98 < ratio < 2**0.25 * 1.02


def test_nothing_is_scored_twice_and_the_score_never_falls():
    found, calls = searched()
    assert len(calls) == len(set(calls)) == len(found.tried)
    scores = [line.score for line in found.lines]
    assert scores == sorted(scores)
    assert len(scores) == 3 * len(PARAMETERS)
    assert found.tried == searched()[0].tried, "the same in every run"


def test_without_rounds_the_start_stays():
    found, calls = searched(rounds=0)
    assert (found.best, calls) == (CRFSetting(), [CRFSetting()])


def test_equal_scores_keep_the_start():
    found = search(CRFSetting(), lambda settings: [0.5] * len(settings))
    assert found.best == CRFSetting()


def test_a_weight_of_zero_stays_and_leaves_its_term_out():
    start = CRFSetting((3.0, 0.0), (80.0, 13.0, 10.0))
    found = search(start, lambda settings: [s.bilateral[0] for s in settings], rounds=1)
    assert found.best.gaussian[1] == 0
    assert [type(term) for term in found.best.terms()] == [PairwiseBilateral]
    assert [type(term) for term in CRFSetting().terms()] == [PairwiseGaussian, PairwiseBilateral]


def test_bad_rounds():
    with pytest.raises(ValueError, match="rounds must be 0 to 3, got 4"):
        searched(rounds=4)
