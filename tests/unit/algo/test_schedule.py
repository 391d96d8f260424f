from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.schedule import learning_rate

SCHEDULES = ("linear", "cosine", "constant")


def rates(total, warmup, schedule, peak=1.0):
    return [learning_rate(step, total, peak, warmup, schedule) for step in range(total)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_shapes_without_warm_up(schedule, expected):
    assert rates(4, 0, schedule) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_evenly_to_the_peak(schedule):
    assert rates(10, 3, schedule)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_linear_and_cosine_end_at_zero_after_the_last_step():
    assert learning_rate(10, 10, 1.0, 3, "linear") == 0.0
    assert learning_rate(10, 10, 1.0, 3, "cosine") == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(11, 10, 1.0, 3, "linear") == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_longer_than_training_only_rises(schedule):
    assert rates(3, 9, schedule) == pytest.approx([0.1, 0.2, 0.3])


@given(st.integers(1, 60), st.integers(0, 70), st.sampled_from(SCHEDULES), st.floats(1e-8, 1.0))
def test_rates_are_positive_below_the_peak_and_fall_after_the_warm_up(total, warmup, schedule, peak):
    found = rates(total, warmup, schedule, peak)
    assert all(0.0 < rate <= peak for rate in found)
    after = found[warmup:]
    assert all(earlier >= later for earlier, later in pairwise(after))
    if after:
        assert after[0] == peak
