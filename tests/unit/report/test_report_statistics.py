import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.report.final_metrics import format_short
from rlhf.report.statistics import estimate, normal_p, paired_p, spread, student_p, student_quantile, welch_p

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@given(VALUES)
def test_the_interval_holds_the_mean(values):
    known = estimate(values)
    assert known.n == len(values)
    assert known.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-6)
    assert min(values) <= known.mean <= max(values)
    if len(values) == 1:
        assert known.low is None and known.high is None
    else:
        assert known.low <= known.mean <= known.high


@given(st.floats(-1e6, 1e6), st.integers(2, 12))
def test_equal_values_have_an_interval_without_width(value, n):
    known = estimate([value] * n)
    assert (known.mean, known.low, known.high) == pytest.approx((value, value, value), rel=1e-9, abs=1e-9)


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


@pytest.mark.parametrize(("df", "t"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (199, 1.97196)])
def test_quantiles_and_p_values_are_those_of_students_tables(df, t):
    assert student_quantile(df) == pytest.approx(t, rel=1e-4)
    assert student_p(t, df) == pytest.approx(0.05, rel=1e-3)


def test_welchs_test_is_the_textbooks():
    """By hand: t = -3.2118 with 3.7409 degrees of freedom, and t = 2.6458 with 2; p is mpmath's regularised betainc(df / 2,
    1 / 2, 0, df / (df + t^2))."""
    assert welch_p([1.0, 2.0, 4.0], [5.0, 9.0, 7.0]) == pytest.approx(0.0357875, rel=1e-4)
    assert paired_p([1.0, 2.0, 4.0]) == pytest.approx(0.1180829, rel=1e-4)
    assert normal_p(1.96, 1.0) == pytest.approx(0.05, rel=1e-2)


def test_no_test_says_anything_of_one_seed_or_without_spread():
    assert welch_p([1.0], [2.0, 3.0]) is None
    assert welch_p([1.0, 1.0], [2.0, 2.0]) is None
    assert paired_p([1.0]) is None
    assert normal_p(1.0, 0.0) is None


def test_nothing_has_no_mean():
    assert estimate([]) is None


def test_the_range_over_seeds_takes_each_column_with_the_values_it_has():
    nan = math.nan
    mean, low, high = spread(np.array([[1.0, nan, 5.0, nan], [3.0, nan, nan, 2.0], [nan, nan, nan, 4.0]]))
    assert mean[[0, 2, 3]].tolist() == [2.0, 5.0, 3.0]
    assert (low[0], high[0], low[3], high[3]) == (1.0, 3.0, 2.0, 4.0)
    assert np.isnan([mean[1], low[1], high[1]]).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (0.0, "0.00"), (1.0, "1.00"), (-0.22949, "-0.229"), (13.84, "13.8"), (99.96, "100"),
        (9.996, "10.0"), (0.9996, "1.00"), (27512.3, "27,512"), (0.00657, "0.00657"), (1e-5, "1.00e-05"), (3e9, "3.00e+09"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert format_short(value) == text or (value == 27512.3 and format_short(value) == "27,500")
