"""Fits of Gao's forms: known coefficients come back, intervals hold them, and curves without a turn have none."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf.report.overoptimisation import Trajectory, fit_form, predict
from rlhf.report.panels.overoptimisation import describe, read_trajectory
from rlhf.report.stage import Series

KL = np.linspace(0.5, 30.0, 12)
GAINS = {
    "logarithmic": lambda d: d * (0.8 - 0.45 * np.log(d)),
    "linear": lambda d: d * (0.8 - 0.12 * d),
}
TURNS = {"logarithmic": math.exp(2 * (0.8 / 0.45 - 1)), "linear": (0.8 / 0.24) ** 2}


@pytest.mark.parametrize("form", GAINS)
def test_the_coefficients_and_the_turn_of_a_curve_come_back(form):
    fit = fit_form([Trajectory(KL, GAINS[form](np.sqrt(KL)))], form)
    assert (fit.alpha.value, fit.turn.value) == (pytest.approx(0.8), pytest.approx(TURNS[form]))
    assert fit.beta.value == pytest.approx(0.45 if form == "logarithmic" else 0.12)
    assert fit.beta.low == pytest.approx(fit.beta.high)  # one seed without error
    assert predict(fit, KL) == pytest.approx(GAINS[form](np.sqrt(KL)))
    best = max(np.linspace(0.1, 30, 3000), key=lambda kl: predict(fit, np.array([kl]))[0])
    assert best == pytest.approx(fit.turn.value, abs=0.02)


def test_intervals_grow_with_the_error_and_hold_the_truth():
    random = np.random.default_rng(1)
    widths = []
    for error in (0.02, 0.1):
        seeds = [
            Trajectory(KL, GAINS["logarithmic"](np.sqrt(KL)) + error * random.standard_normal(12), error) for _ in "abc"
        ]
        fit = fit_form(seeds, "logarithmic")
        assert fit.alpha.low <= 0.8 <= fit.alpha.high and fit.beta.low <= 0.45 <= fit.beta.high
        widths.append(fit.beta.high - fit.beta.low)
    assert 2 < widths[1] / widths[0] < 12


def test_a_curve_that_only_rises_does_not_turn():
    fit = fit_form([Trajectory(KL, 0.3 * np.sqrt(KL) * (1 + 0.1 * np.log(KL)))], "logarithmic")
    assert fit.turn.value == math.inf
    row = describe(SimpleNamespace(label="a"), [Trajectory(KL, KL)], fit)
    assert row["KL at the turn"] is None and row["gain at the turn"] is None


def test_what_is_no_evaluation_is_left_out_and_few_evaluations_are_not_fitted():
    gold = np.array([math.nan, 1.0, 2.0, math.nan, 2.5, 2.0, 1.0])
    series = Series(np.arange(7.0), {"eval/gold": gold, "eval/kl_sequence": np.array([1.0, 0.0, 1, 2, 3, 4, 5])})
    metrics = {"eval/gold_sft": 0.5, "eval/gold_se": 0.1}
    assert read_trajectory(SimpleNamespace(series=series, metrics=metrics)) is None  # four, and one at the reference
    series.values["eval/kl_sequence"][1] = 0.5
    found = read_trajectory(SimpleNamespace(series=series, metrics=metrics))
    assert found.gain.tolist() == [0.5, 1.5, 2.0, 1.5, 0.5] and found.error == 0.1
    assert read_trajectory(SimpleNamespace(series=series, metrics={})) is None
