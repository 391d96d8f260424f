"""How a time grows: which line it follows, and where it leaves it."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf.stages.bench.growth import Row, Series, count_on_line, describe_growth, fit_line, make_tables, store_series

DOUBLED = [4, 8, 16, 32, 64, 128]
PARTS = st.floats(0, 1e3, allow_nan=False)


@given(PARTS, PARTS, st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=8, unique=True))
def test_times_of_a_line_lie_on_it(fixed, slope, amounts):
    assume(fixed + slope * min(amounts) > 1e-6)
    seconds = [fixed + slope * amount for amount in amounts]
    assert count_on_line(amounts, seconds) == len(amounts)
    line = fit_line(amounts, seconds)
    assert [line.at(amount) for amount in amounts] == pytest.approx(seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("seconds", "on_line"),
    [
        ([1 + 2 * amount for amount in DOUBLED], 6),
        ([3.0] * 6, 6),
        ([1.1 * amount if at % 2 else amount for at, amount in enumerate(DOUBLED)], 6),  # noise
        ([0.1 * amount**2 for amount in DOUBLED], 1),
        ([1 + amount + (amount > 32) * amount for amount in DOUBLED], 4),  # what no longer fits a cache
        ([min(amount, 16) for amount in DOUBLED], 3),
        ([100 / amount for amount in DOUBLED], 1),
    ],
)
def test_where_times_leave_their_line(seconds, on_line):
    assert count_on_line(DOUBLED, seconds) == on_line


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), st.data())
def test_a_line_has_no_negative_part(seconds, data):
    amounts = data.draw(st.lists(st.floats(1e-3, 1e6), min_size=len(seconds), max_size=len(seconds), unique=True))
    line = fit_line(amounts, seconds)
    assert line.fixed >= 0 and line.slope >= 0 and line.at(amounts[0]) > 0


def series(seconds, shares=None):
    rows = [Row(value, value, [time, 2 * time], shares or {}) for value, time in zip(DOUBLED, seconds, strict=False)]
    return Series("Batch: a step", "sequences", "sequences", "processor seconds", rows)


def test_the_sentence_says_where():
    assert describe_growth(series([0.5 + 0.25 * value for value in DOUBLED])) == "On one line: 0.5 s + 0.25 s × sequences."
    bent = [0.5 + 0.25 * value * (1 if value < 64 else 2) for value in DOUBLED]
    assert describe_growth(series(bent)) == (
        "On one line up to 32: 0.5 s + 0.25 s × sequences. From there on not: 64 takes 1.97 times what the line says."
    )
    assert describe_growth(series([2, 3])) == "Too few values for a line: 8 takes 1.50 times as long as 4."


def test_a_stored_result_is_tables():
    found = {"series": store_series([series([1, 2, 4], {"rollout": 0.4, "updates": 0.6}), series([2, 3])])}
    first, second = make_tables(found).split("\n\n**")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines() if line.startswith("|")]
    assert lines[0] == [
        "sequences", "processor seconds (largest of 2)", "sequences, times", "time, times", "over the line",
        "% rollout / updates",
    ]  # fmt: skip
    assert lines[2:] == [
        ["4", "1 (2)", "1", "1", "1.00", "40 / 60"],
        ["8", "2 (4)", "2", "2", "1.00", "40 / 60"],
        ["16", "4 (8)", "4", "4", "1.00", "40 / 60"],
    ]
    assert "| 8 | 3 (6) | 2 | 1.5 | – |" in second
