"""Statistics of evaluations, against values worked out by hand and against all subsets."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.evaluation.statistics import (
    compare_scores,
    distinct_n,
    estimate_length_controlled,
    estimate_mean,
    length_controlled_win,
    pass_at_k,
    repeated_share,
    sign_test,
)


def test_a_mean_has_an_error_and_an_interval_over_prompts():
    found = estimate_mean([0.0, 1.0, 2.0, 3.0])
    assert (found.mean, found.se, found.n) == (1.5, pytest.approx(math.sqrt(5 / 3) / 2), 4)
    assert 0.0 <= found.low < 1.5 < found.high <= 3.0
    assert found == estimate_mean([0.0, 1.0, 2.0, 3.0])  # the same at every call
    alone = estimate_mean([2.0])
    assert (alone.mean, alone.se, alone.low) == (2.0, None, None)
    per_token = estimate_mean([2.0, 2.0], [1.0, 3.0])  # 4 nats over 4 tokens
    assert (per_token.mean, per_token.se) == (1.0, pytest.approx(math.sqrt(2 * 2) / 4))


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    draw = np.random.default_rng(1)
    held = [found.low <= 0 <= found.high for found in (estimate_mean(draw.normal(size=60)) for _ in range(200))]
    assert 0.89 <= np.mean(held) <= 0.99


def test_wins_and_the_sign_test():
    assert compare_scores(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0])).tolist() == [1.0, 0.5, 0.0]
    assert sign_test(5, 0) == 2 / 2**5
    assert sign_test(4, 1) == 2 * 6 / 2**5
    assert (sign_test(3, 3), sign_test(0, 0)) == (1.0, 1.0)


def test_length_control_takes_off_what_length_explains():
    draw = np.random.default_rng(0)
    difference = draw.normal(20, 10, 2000)
    wins = (draw.random(2000) < 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std())))).astype(float)
    assert wins.mean() > 0.75  # the longer answer wins, and nothing else decides
    found = estimate_length_controlled(wins, difference)
    assert found.low < 0.5 < found.high
    flat = np.array([1.0, 1.0, 1.0, 0.0])
    assert length_controlled_win(flat, np.zeros(4)) == pytest.approx(0.75, abs=1e-3)  # no difference: the plain rate
    assert 0.0 < length_controlled_win(np.ones(4), np.arange(4.0)) <= 1.0  # separable, and finite


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(right, data):
    k = data.draw(st.integers(1, len(right)))
    expected = np.mean([any(chosen) for chosen in combinations(right, k)])
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(expected)


def test_diversity_of_texts():
    assert distinct_n(["a b", "a c"], 1) == 3 / 4
    assert distinct_n(["a b", "a b"], 2) == 1 / 2
    assert distinct_n(["a"], 2) is None
    assert repeated_share("a b a b a b", 2) == pytest.approx(3 / 5)
    assert repeated_share("a", 2) == 0.0
