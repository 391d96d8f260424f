"""Comparing two policies by their stored answers to the same prompts: win rates, ties, intervals, a sign test, and the rate
at equal lengths. No torch, and no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.evaluation.answers import Row
from rlhf.evaluation.statistics import (
    Estimate,
    compare_scores,
    estimate_length_controlled,
    estimate_mean,
    sign_test,
)
from rlhf.evaluation.summary import mean_by_prompt, mean_of, pool_scores

# What follows the name of a score in the name of its length-controlled win rate.
CONTROLLED = " at equal length"


@dataclass(frozen=True)
class Comparison:
    """How often the answers of one policy win against those of another.

    Attributes:
        a: The name of the first policy.
        b: The name of the second.
        by: What decides.
        win: The share of prompts on which b wins, a tie half of one, over samples first.
        ties: Answers that tie.
        p: The two-sided p-value of the sign test over prompts, whatever the lengths: the fit at equal length has none, and
            its interval is too narrow where few prompts separate the two policies.
    """

    a: str
    b: str
    by: str
    win: Estimate
    ties: int
    p: float

    @property
    def is_decided(self) -> bool:
        """Whether the two can be told apart: the interval leaves out 1/2, and p is below 0.05."""
        low, high = self.win.low, self.win.high
        return low is not None and high is not None and not low <= 0.5 <= high and self.p < 0.05


def have_same_prompts(first: Sequence[Row], second: Sequence[Row]) -> bool:
    """Whether two policies have answered the same prompts, as often."""
    return [row["prompt"] for row in first] == [row["prompt"] for row in second]


def compare_answers(names: tuple[str, str], first: Sequence[Row], second: Sequence[Row]) -> list[Comparison]:
    """Compare two policies by gold and by each score that both have; each rate is followed by that at equal length, where
    lengths differ. Both have answered the same prompts, as often."""
    ours, theirs = pool_scores(first), pool_scores(second)
    longer = mean_by_prompt(second, "length") - mean_by_prompt(first, "length")
    found: list[Comparison] = []
    for by in (name for name in ("gold", *ours) if name in ours and name in theirs):
        if any(known.by == by for known in found):
            continue
        wins = compare_scores(ours[by], theirs[by])
        found += rate(names, by, wins.mean(1), int((wins == 0.5).sum()), longer)
    return found


def compare_verdicts(
    names: tuple[str, str], first: Sequence[Row], second: Sequence[Row], wins: Sequence[float | None]
) -> list[Comparison]:
    """Compare two policies by what a judge said of each sample: 1 where the second wins, 1/2 for a tie, None where its
    verdict is invalid, which counts nowhere."""
    kept = [number for number, win in enumerate(wins) if win is not None]
    if not kept:
        return []
    rows, others = [first[number] for number in kept], [second[number] for number in kept]
    told = [float(wins[number] or 0.0) for number in kept]
    longer = mean_by_prompt(others, "length") - mean_by_prompt(rows, "length")
    return rate(names, "judge", mean_of(rows, told), sum(win == 0.5 for win in told), longer)


def rate(names: tuple[str, str], by: str, wins: np.ndarray, ties: int, longer: np.ndarray) -> list[Comparison]:
    """Return the win rate from the wins of each prompt [n], and that at equal length, `longer` [n] by how many tokens b's
    answers are."""
    p = sign_test(int((wins > 0.5).sum()), int((wins < 0.5).sum()))
    found = [Comparison(*names, by, estimate_mean(wins), ties, p)]
    if len(wins) > 1 and float(longer.std()) > 0:
        found.append(Comparison(*names, by + CONTROLLED, estimate_length_controlled(wins, longer), ties, p))
    return found
