import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.report.final_metrics import format_short
from rlhf.report.statistics import bands, estimate

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(VALUES)
def test_the_interval_holds_the_mean_and_stays_among_the_values(values):
    known = estimate(values)
    assert known.n == len(values)
    assert known.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-6)
    assert min(values) <= known.mean <= max(values)
    if len(values) == 1:
        assert known.low is None and known.high is None
    else:
        assert min(values) <= known.low <= known.mean <= known.high <= max(values)


@given(st.floats(-1e6, 1e6), st.integers(2, 12))
def test_equal_values_have_an_interval_without_width(value, n):
    known = estimate([value] * n)
    assert (known.mean, known.low, known.high) == (value, value, value)


@given(VALUES, st.randoms())
def test_the_order_of_the_seeds_does_not_matter(values, random):
    shuffled = values.copy()
    random.shuffle(shuffled)
    assert estimate(values) == estimate(shuffled)


@given(VALUES, st.floats(-100, 100))
def test_shifting_the_values_shifts_the_interval(values, shift):
    one, other = estimate(values), estimate([value + shift for value in values])
    if len(values) > 1:
        assert other.low == pytest.approx(one.low + shift, rel=1e-6, abs=1e-3)
        assert other.high == pytest.approx(one.high + shift, rel=1e-6, abs=1e-3)


def test_the_interval_of_two_values_is_those_two():
    assert (estimate([1.0, 2.0]).low, estimate([1.0, 2.0]).high) == (1.0, 2.0)


def test_the_interval_is_close_to_the_normal_one_where_that_holds():
    values = np.random.default_rng(3).normal(5.0, 2.0, 200)
    known, half = estimate(values.tolist()), 1.96 * values.std() / math.sqrt(200)
    assert known.low == pytest.approx(values.mean() - half, abs=0.03)
    assert known.high == pytest.approx(values.mean() + half, abs=0.03)


def test_nothing_has_no_mean():
    assert estimate([]) is None


def test_bands_take_each_column_with_the_values_it_has():
    nan = math.nan
    mean, low, high, n = bands(np.array([[1.0, nan, 5.0, nan], [3.0, nan, nan, 2.0], [nan, nan, nan, 4.0]]))
    assert n.tolist() == [2, 0, 1, 2]
    assert mean[[0, 2, 3]].tolist() == [2.0, 5.0, 3.0]
    assert (low[0], high[0], low[3], high[3]) == (1.0, 3.0, 2.0, 4.0)
    assert np.isnan([mean[1], low[1], low[2], high[2]]).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (0.0, "0.00"), (1.0, "1.00"), (-0.22949, "-0.229"), (13.84, "13.8"), (99.96, "100"),
        (9.996, "10.0"), (0.9996, "1.00"), (27512.3, "27,512"), (0.00657, "0.00657"), (1e-5, "1.00e-05"), (3e9, "3.00e+09"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert format_short(value) == text or (value == 27512.3 and format_short(value) == "27,500")
