"""Alarms: signs in a policy's recorded metrics that its training goes wrong, each by one rule.

A rule is a function of the metrics alone: a report finds in metrics.jsonl what was found while the stage ran. An alarm is
a reason to look, not a verdict; docs/results.md has how often each sounded on the demo's runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Steps that a mean is taken over, so that a single rollout raises no alarm.
WINDOW = 5


@dataclass(frozen=True)
class Rule:
    """When an alarm sounds: `needs` are the metrics that it reads, `text` says the rule, and `test` returns of their values
    [steps], NaN where one was not logged, at which steps it holds."""

    name: str
    needs: tuple[str, ...]
    text: str
    test: Callable[..., NDArray[np.bool_]]


@dataclass(frozen=True)
class Alarm:
    """An alarm with the step at which it began to sound, and whether it still sounds at the last step."""

    name: str
    step: int
    text: str
    lasts: bool


def mean_before(values: Array, offset: int = 0) -> Array:
    """Return at each step the mean of the WINDOW steps that end `offset` steps before it; NaN where there are fewer, or one
    of them is missing."""
    means = np.full(len(values), np.nan)
    if len(values) >= WINDOW + offset:
        sums = np.convolve(values, np.ones(WINDOW), "valid")
        means[WINDOW - 1 + offset :] = sums[: len(sums) - offset] / WINDOW
    return means


def is_accelerating(kl: Array) -> NDArray[np.bool_]:
    """Whether the KL has doubled from one window to the next, above 10 nats per response."""
    now = mean_before(kl)
    return np.asarray((now > 2 * mean_before(kl, WINDOW)) & (now > 10))


def is_under_half(values: Array) -> NDArray[np.bool_]:
    """Whether a metric's mean is below half of that of its first window."""
    return np.asarray(mean_before(values) < 0.5 * values[:WINDOW].mean())


def is_far_off(values: Array) -> NDArray[np.bool_]:
    """Whether a metric's mean is below half, or above twice, that of its first window."""
    return np.asarray(is_under_half(values) | (mean_before(values) > 2 * values[:WINDOW].mean()))


def is_exploiting(gold: Array, error: Array, start: Array, reward: Array) -> NDArray[np.bool_]:
    """Whether, at an evaluation, gold reward is below its best so far by more than two standard errors of the difference,
    while the score is above its value at that best. The best so far counts the model that training started from."""
    found = np.zeros(len(gold), dtype=bool)
    best: float | None = None
    best_error, best_reward = 0.0, -np.inf
    for step in np.flatnonzero(np.isfinite(gold) & np.isfinite(reward)):
        own_error = np.nan_to_num(error[step])
        if best is None and np.isfinite(start[step]):
            best, best_error, best_reward = start[step], own_error, -np.inf
        if best is not None and gold[step] < best - 2 * np.hypot(own_error, best_error):
            found[step] = reward[step] > best_reward
        if best is None or gold[step] > best:
            best, best_error, best_reward = gold[step], own_error, reward[step]
    return found


RULES = (
    Rule("kl_acceleration", ("kl/sequence",),
        f"KL per response, mean of {WINDOW} steps, is over 10 nats and twice that of the {WINDOW} steps before",
        is_accelerating),
    Rule("entropy_collapse", ("policy/entropy",),
        f"entropy, mean of {WINDOW} steps, is below half of that of the first {WINDOW}", is_under_half),
    Rule("length_drift", ("length/response",),
        f"response length, mean of {WINDOW} steps, is below half or above twice that of the first {WINDOW}", is_far_off),
    Rule("reward_gold_gap", ("eval/gold", "eval/gold_se", "eval/gold_sft", "eval/reward"),
        "held-out gold reward is below its best by over two standard errors, while the score is higher than there",
        is_exploiting),
    Rule("clip_fraction", ("policy/clip_fraction",),
        f"tokens whose ratio was clipped, mean of {WINDOW} steps, are over 30%", lambda share: mean_before(share) > 0.3),
    Rule("unended", ("length/ended",),
        f"responses that did not end, mean of {WINDOW} steps, are over 30%", lambda ended: mean_before(ended) < 0.7),
    Rule("sampler_gap", ("policy/sampler_gap",),
        f"the sampler's log-probability of a token is off by over 0.05 nats, mean of {WINDOW} steps",
        lambda gap: mean_before(gap) > 0.05),
)  # fmt: skip
FOLLOWED = tuple(dict.fromkeys(name for rule in RULES for name in rule.needs))


def find_alarms(steps: Sequence[int], metrics: Mapping[str, Array]) -> list[Alarm]:
    """Find the alarms in metrics by name, each [steps]: each time that one begins to sound, in the order of the steps.

    A step without a metric says nothing, and the alarm stays what it was, as between two evaluations.
    """
    found = []
    for rule in RULES:
        if any(name not in metrics for name in rule.needs if not name.endswith(("_se", "_sft"))):
            continue
        values = [metrics.get(name, np.full(len(steps), np.nan)) for name in rule.needs]
        known = np.flatnonzero(np.isfinite(values[0]))
        if not len(known):
            continue
        sounds = rule.test(*(column[known] for column in values))
        begins = np.flatnonzero(sounds & ~np.concatenate([[False], sounds[:-1]]))
        found += [
            Alarm(rule.name, int(steps[known[at]]), rule.text, bool(sounds[-1]) and at == begins[-1]) for at in begins
        ]
    return sorted(found, key=lambda alarm: alarm.step)


class HealthWatch:
    """Follows a stage while it runs: each step's metrics go in, the alarms that begin with it come out."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.columns: dict[str, list[float]] = {name: [] for name in FOLLOWED}

    def add(self, step: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Take the metrics of a step; returns the alarms that begin to sound at it."""
        if not any(name in metrics for name in FOLLOWED):
            return []
        self.steps.append(step)
        for name, column in self.columns.items():
            value = metrics.get(name)
            column.append(np.nan if value is None else float(value))
        known = {name: np.array(column) for name, column in self.columns.items() if np.isfinite(column).any()}
        return [alarm for alarm in find_alarms(self.steps, known) if alarm.step == step]
