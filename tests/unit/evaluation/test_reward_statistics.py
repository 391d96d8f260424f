"""Statistics of a reward model's scores, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from rlhf.evaluation.reward.statistics import (
    bin_reliability,
    count_scores,
    credit,
    estimate_brier,
    estimate_by_group,
    estimate_correlation,
    estimate_ece,
    estimate_share,
    fit_temperature,
    label_lengths,
    label_margins,
    wilson,
)


def logit(p):
    return math.log(p / (1 - p))


def test_a_share_has_wilsons_interval():
    found = estimate_share(range(10), np.array([1.0] * 8 + [0.0] * 2))
    assert found.mean == 0.8 and found.n == 10
    assert found.se == pytest.approx(math.sqrt(0.16 / 9))
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # Wilson's interval of 8 in 10
    assert wilson(1.0, 0.0, 10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-6)  # 10 / (10 + z^2), not [1, 1]


def test_answers_to_one_prompt_count_as_fewer():
    right = np.array([1.0] * 40 + [0.0] * 10)
    alone = estimate_share(range(50), right)
    together = estimate_share([number // 10 for number in range(50)], right)  # five prompts, each all right or all wrong
    assert together.mean == alone.mean == 0.8
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert estimate_share([0] * 50, right).se is None


def test_ties_are_half_right():
    assert credit(np.array([0.5, 0.0, -0.5])).tolist() == [1.0, 0.5, 0.0]


def test_a_reliability_diagram():
    margins = np.array([logit(0.92), -logit(0.94), logit(0.72), 0.0])
    bins = bin_reliability(margins)
    assert [(b.low, b.n, b.accuracy) for b in bins] == [
        (0.5, 1, 0.5), (pytest.approx(0.7), 1, 1.0), (pytest.approx(0.9), 2, 0.5),
    ]  # fmt: skip
    assert [b.confidence for b in bins] == pytest.approx([0.5, 0.72, 0.93])
    # ECE: (0 + |1 - 0.72| + 2 |0.5 - 0.93|) / 4
    assert estimate_ece(range(4), margins).mean == pytest.approx((0.28 + 0.86) / 4)
    # Brier: of the probability of the chosen response, 0.92, 0.06, 0.72 and 0.5
    assert estimate_brier(range(4), margins).mean == pytest.approx((0.08**2 + 0.94**2 + 0.28**2 + 0.25) / 4)


def test_the_temperature_that_fits():
    # 8 of 10 right at one margin m: best is sigmoid(m / T) = 0.8.
    margins = np.array([3.0] * 8 + [-3.0] * 2)
    assert fit_temperature(margins) == pytest.approx(3.0 / logit(0.8), rel=1e-6)
    assert fit_temperature(np.array([1.0, 2.0])) is None  # surer is always better
    assert fit_temperature(np.array([1.0, -2.0])) is None  # less sure is always better


def test_rank_correlations():
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 2.0, 16.0])
    assert estimate_correlation(range(4), first, second).mean == pytest.approx(0.8)  # 1 - 6 sum d^2 / (n (n^2 - 1)), d^2: 2
    assert math.isnan(estimate_correlation(range(4), first, np.ones(4)).mean)
    # Longer prompts score higher, but of two answers to a prompt the longer one scores lower.
    prompts, scores, lengths = ["a", "a", "b", "b"], np.array([2.0, 1.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert estimate_correlation(prompts, scores, lengths).mean > 0
    assert estimate_correlation(prompts, scores, lengths, within=True).mean == pytest.approx(-1.0)


def test_bootstrap_intervals_hold_the_truth():
    draws, held = np.random.default_rng(0), 0
    for _ in range(60):
        first = draws.normal(size=80)
        found = estimate_correlation(range(80), first, first + draws.normal(size=80))
        held += found.low < 6 / math.pi * math.asin(math.sqrt(0.5) / 2) < found.high  # Spearman's rho of a normal pair
    assert held >= 51


def test_groups_of_pairs():
    assert label_lengths(np.array([3, 2, 1]), np.array([1, 2, 3])) == ["longer", "same", "shorter"]
    assert label_margins(np.array([0.0, 1.0, 2.0, 1.0])) == ["", "1", "2", "1"]
    many = label_margins(np.array([0.0, *np.arange(1.0, 9.0)]))
    assert many[0] == "" and len(set(many)) == 5 and max(map(many.count, many)) == 2
    found = estimate_by_group("abcd", np.array([1.0, 0.0, 1.0, 1.0]), ["x", "x", "", "y"])
    assert {name: (estimate.mean, estimate.n) for name, estimate in found.items()} == {"x": (0.5, 2), "y": (1.0, 1)}


def test_a_histogram_counts_every_score():
    found = count_scores(np.array([0.0, 1.0, 2.0]), np.array([-1.0, 0.0]))
    assert (sum(found.chosen), sum(found.rejected)) == (3, 2) and found.edges[0] == -1.0 and found.edges[-1] == 2.0
