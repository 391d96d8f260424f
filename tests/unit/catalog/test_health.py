"""Alarms on recorded curves: those that should sound, and those that should not."""

import numpy as np
import pytest

from rlhf.catalog.health import FOLLOWED, RULES, WINDOW, HealthWatch, find_alarms
from rlhf.catalog.stage import known_metrics
from rlhf.config.schema.command import ALARMS

# Evaluations of two runs of the demo, every 10 steps: gold, its standard error, score. The second has a learning rate of
# 1e-3, and its policy exploits the reward model.
HEALTHY = ((1.62, 0.09, 2.35), (1.92, 0.10, 2.66), (1.95, 0.10, 3.11), (1.98, 0.10, 3.24))
EXPLOITING = ((0.53, 0.16, 3.16), (0.50, 0.14, 3.70), (0.01, 0.14, 4.20), (-0.06, 0.14, 4.25))
# Their KL in rollouts, and the first one's entropy, at the first ten steps.
SLOW_KL = (0.0, 0.1, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.4, 2.9)
FAST_KL = (0.0, 0.9, 3.4, 6.1, 8.2, 10.4, 13.9, 16.2, 17.0, 18.1)


def sounding(**curves):
    """The alarms of curves by metric, with `_` for `/` once, as (name, step)."""
    columns = {name.replace("_", "/", 1): np.array(values, dtype=float) for name, values in curves.items()}
    steps = range(1, 1 + max(map(len, columns.values())))
    return [(alarm.name, alarm.step) for alarm in find_alarms(steps, columns)]


def evaluations(rows, start):
    gold, error, reward = zip(*rows, strict=True)
    return {"eval_gold": gold, "eval_gold_se": error, "eval_gold_sft": [start] * len(gold), "eval_reward": reward}


def test_each_alarm_can_be_asked_for_and_reads_metrics_that_are_logged():
    assert tuple(rule.name for rule in RULES) == ALARMS
    assert {name for name in FOLLOWED if not name.endswith("_se")} <= set(known_metrics())


def test_kl_that_doubles_sounds_where_it_is_large():
    assert sounding(kl_sequence=FAST_KL) == [("kl_acceleration", 10)]
    assert sounding(kl_sequence=SLOW_KL) == []
    assert sounding(kl_sequence=np.linspace(10, 15, 40)) == []


def test_gold_that_falls_while_the_score_rises_sounds():
    assert sounding(**evaluations(EXPLOITING, 1.2)) == [("reward_gold_gap", 1)]  # below SFT from the first evaluation on
    assert sounding(**evaluations(EXPLOITING, 0.4)) == [("reward_gold_gap", 3)]
    assert sounding(**evaluations(HEALTHY, 0.97)) == []
    both_fall = ((1.9, 0.1, 3.0), (1.0, 0.1, 2.0))
    assert sounding(**evaluations(both_fall, 0.5)) == []


@pytest.mark.parametrize(
    ("name", "metric", "bad", "good"),
    [
        ("entropy_collapse", "policy_entropy", np.linspace(0.4, 0.05, 20), np.linspace(0.38, 0.23, 40)),
        ("length_drift", "length_response", np.linspace(20, 60, 20), np.linspace(18, 33, 40)),
        ("length_drift", "length_response", np.linspace(40, 5, 20), [30] * 20),
        ("clip_fraction", "policy_clip_fraction", [0.1] * 5 + [0.4] * 5, [0.02] * 20),
        ("unended", "length_ended", [1.0] * 5 + [0.5] * 5, [0.69] * 4 + [0.95] * 20),
        ("sampler_gap", "policy_sampler_gap", [0.1] * 5, [1e-7] * 4 + [0.2] + [1e-7] * 20),
    ],
)
def test_means_over_a_window_sound_and_a_single_step_does_not(name, metric, bad, good):
    assert [found for found, _ in sounding(**{metric: bad})] == [name]
    assert sounding(**{metric: good}) == []


def test_an_alarm_begins_again_after_it_ended_and_what_was_not_logged_says_nothing():
    share = np.array([0.5] * 6 + [0.0] * 6 + [np.nan] * 3 + [0.5] * 6)
    assert sounding(policy_clip_fraction=share) == [("clip_fraction", WINDOW), ("clip_fraction", 19)]


def test_a_run_is_told_what_a_report_finds():
    watch, rows = HealthWatch(), [{"kl/sequence": kl, "length/ended": None} for kl in FAST_KL]
    told = [alarm.name for step, row in enumerate(rows, start=1) for alarm in watch.add(step, row)]
    assert told == ["kl_acceleration"]
