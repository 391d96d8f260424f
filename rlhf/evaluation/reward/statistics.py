"""Statistics of a reward model's scores: of numbers alone, with no model and no text. P pairs, B responses, C prompts.

Prompts are what was drawn at random, and what is measured on one prompt belongs together, so that errors are taken, and
resamples drawn, over prompts.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf.algo.errors import ratio_with_error, wilson_interval
from rlhf.evaluation.statistics import Estimate, take_interval

Array = NDArray[np.float64]

RESAMPLES, SEED = 2_000, 0
# Resamples that are in memory together.
CHUNK = 100
# Bins of a reliability diagram, and of a histogram of scores.
RELIABILITY_BINS, HISTOGRAM_BINS = 10, 24
# Groups that pairs are split into by their margin.
MARGIN_GROUPS = 4


def credit(margins: Array) -> Array:
    """Return 1 for each margin above 0, 1/2 for a tie and 0 for one below, [P]."""
    right: Array = (margins > 0) + 0.5 * (margins == 0)
    return right


def estimate_share(prompts: Sequence[Hashable], values: Array) -> Estimate:
    """Return the mean of values from 0 to 1, with the interval of Wilson (1927) for as many independent items as have this
    standard error over prompts; see `wilson`."""
    found = ratio_with_error("x", prompts, values.tolist(), [1.0] * len(values))
    mean, error = found["x"], found.get("x_se")
    low, high = wilson(mean, error, len(set(prompts)), len(values))
    return Estimate(mean, error, low, high, len(values))


def wilson(mean: float, error: float | None, prompts: int, items: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    The number of items is the effective one, n* = p (1 - p) / se^2 C / (C - 1), at most the true one: answers to one prompt
    resemble each other, and count as fewer (as in Korn and Graubard, Survey Methodology 24, 1998). Where all prompts have
    one item it is their number. Where the error says nothing, as with a share of 0 or 1, it is the number of prompts, C.
    """
    n = float(prompts)
    if error and 0.0 < mean < 1.0:
        n = min(max(1.0, mean * (1.0 - mean) / error**2 * prompts / (prompts - 1)), items)
    return wilson_interval(mean, n)


def estimate_mean(prompts: Sequence[Hashable], values: Array) -> Estimate:
    """Return the mean of values, with its bootstrap interval over prompts."""
    sums = sum_by_prompt(prompts, np.stack([values, np.ones_like(values)], axis=1))
    return bootstrap(sums, lambda drawn: drawn[:, 0] / drawn[:, 1], len(values))


def sum_by_prompt(prompts: Sequence[Hashable], columns: Array) -> Array:
    """Return the sums of the rows of each prompt, [C, K], of columns [items, K]."""
    known: dict[Hashable, int] = {}
    rows = np.array([known.setdefault(prompt, len(known)) for prompt in prompts], dtype=np.int64)
    sums = np.zeros((len(known), columns.shape[1]))
    np.add.at(sums, rows, columns)
    return sums


def bootstrap(sums: Array, statistic: Callable[[Array], Array], n: int) -> Estimate:
    """Return a statistic of sums over prompts, with its standard error and percentile interval from resamples of prompts.

    Args:
        sums: What each prompt adds, [C, K].
        statistic: The statistic of each row of totals, [R, K] -> [R]; NaN where it is not defined.
        n: How many items it is of.
    """
    count, draws = len(sums), np.random.default_rng(SEED)
    mean = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    if count < 2 or not math.isfinite(mean):
        return Estimate(mean, None, None, None, n)
    found = []
    for _ in range(RESAMPLES // CHUNK):
        picked = draws.integers(0, count, (CHUNK, count)) + np.arange(CHUNK)[:, None] * count
        weights = np.bincount(picked.ravel(), minlength=CHUNK * count).reshape(CHUNK, count)
        found.append(statistic(weights @ sums))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if len(values) < RESAMPLES // 2:
        return Estimate(mean, None, None, None, n)
    return Estimate(mean, float(values.std(ddof=1)), *take_interval(values), n)


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram: its range of confidence, the mean confidence and the accuracy of the pairs in it, and
    how many they are."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


def probability(margins: Array) -> Array:
    """Return the probability that a reward model gives to the preferred response of each pair, sigmoid(s_c - s_r), [P]."""
    return 0.5 * (1.0 + np.tanh(0.5 * margins))


def bin_reliability(margins: Array, bins: int = RELIABILITY_BINS) -> list[Bin]:
    """Return the bins of the reliability diagram that hold pairs.

    Of a pair, the confidence is that of the response that the model prefers, sigmoid(|s_c - s_r|), from 1/2 to 1, and it is
    right where the labels prefer the same; a tie is right by half.
    """
    confidence, right, place = place_in_bins(margins, bins)
    edges = np.linspace(0.5, 1.0, bins + 1).tolist()
    return [
        Bin(edges[b], edges[b + 1], float(confidence[own].mean()), float(right[own].mean()), int(own.sum()))
        for b in range(bins)
        if (own := place == b).any()
    ]


def place_in_bins(margins: Array, bins: int) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return the confidence of each pair, whether it is right, and the number of its bin of equal width, each [P]."""
    confidence = probability(np.abs(margins))
    place = np.minimum((2 * confidence - 1) * bins, bins - 1).astype(np.int64)
    return confidence, credit(margins), place


def calibration_error(margins: Array, bins: int = RELIABILITY_BINS) -> float:
    """Return the expected calibration error alone; see `estimate_ece`."""
    return sum(found.n * abs(found.accuracy - found.confidence) for found in bin_reliability(margins, bins)) / len(margins)


def estimate_ece(prompts: Sequence[Hashable], margins: Array, bins: int = RELIABILITY_BINS) -> Estimate:
    """Return the expected calibration error, the mean over pairs of |accuracy - confidence| of their bin (Naeini et al.,
    AAAI 2015). Noise alone makes it larger than 0, the more so the fewer pairs there are."""
    confidence, right, place = place_in_bins(margins, bins)
    columns = np.zeros((len(margins), bins + 1))
    columns[np.arange(len(margins)), place] = right - confidence
    columns[:, bins] = 1.0
    sums = sum_by_prompt(prompts, columns)
    return bootstrap(sums, lambda drawn: np.abs(drawn[:, :bins]).sum(axis=1) / drawn[:, bins], len(margins))


def estimate_brier(prompts: Sequence[Hashable], margins: Array) -> Estimate:
    """Return the Brier score, the mean squared difference between the probability of the preferred response and 1."""
    return estimate_mean(prompts, (1.0 - probability(margins)) ** 2)


def estimate_correlation(prompts: Sequence[Hashable], first: Array, second: Array, within: bool = False) -> Estimate:
    """Return Spearman's rank correlation of two numbers of each response [B]; NaN where one of them never differs.

    `within` takes from each rank the mean of the ranks of its prompt, and so asks about answers to the same prompt only.
    Ranks are not taken anew in a resample.
    """
    ranks = np.stack([rank(first), rank(second)], axis=1)
    if within:
        counts = sum_by_prompt(prompts, np.ones((len(first), 1)))
        known: dict[Hashable, int] = {}
        rows = [known.setdefault(prompt, len(known)) for prompt in prompts]
        ranks -= (sum_by_prompt(prompts, ranks) / counts)[rows]
    a, b = ranks.T
    sums = sum_by_prompt(prompts, np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=1))
    return bootstrap(sums, correlation_of_sums, len(first))


def correlation_of_sums(sums: Array) -> Array:
    """Return Pearson's correlation from the sums 1, a, b, a^2, b^2 and a b, [R, 6] -> [R]."""
    n, a, b, aa, bb, ab = sums.T
    covariance, spread = ab - a * b / n, (aa - a**2 / n) * (bb - b**2 / n)
    known = spread > 1e-12 * (aa * bb)  # rounding leaves a little of a spread of 0
    return np.where(known, covariance / np.sqrt(np.where(known, spread, 1.0)), np.nan)


def rank(values: Array) -> Array:
    """Return the rank of each value from 1, [B]; equal values share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = (last - (counts - 1) / 2)[place]
    return mean


def label_lengths(chosen: Array, rejected: Array) -> list[str]:
    """Return for each pair whether its chosen response is `longer`, `shorter`, or as long (`same`)."""
    labels: list[str] = np.select([chosen > rejected, chosen < rejected], ["longer", "shorter"], "same").tolist()
    return labels


def label_margins(margins: Array, groups: int = MARGIN_GROUPS) -> list[str]:
    """Return a label for each pair by how much its chosen response was preferred, "" where that is not known (0).

    Where there are few different margins, each is a group; else groups hold about as many pairs each.
    """
    known = margins != 0
    values = np.unique(margins[known])
    if len(values) <= groups + 1:
        return [f"{margin:g}" if margin else "" for margin in margins.tolist()]
    edges = np.unique(np.quantile(margins[known], np.linspace(0, 1, groups + 1)))
    names = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges.tolist())]
    place = np.clip(np.searchsorted(edges, margins, side="left") - 1, 0, len(names) - 1)
    return [names[number] if is_known else "" for number, is_known in zip(place.tolist(), known.tolist(), strict=True)]


def estimate_by_group(prompts: Sequence[Hashable], values: Array, labels: Sequence[str]) -> dict[str, Estimate]:
    """Return the share of each group of items that has a label, in the order in which the labels come."""
    found = {}
    for label in dict.fromkeys(labels):
        own = [number for number, other in enumerate(labels) if other == label]
        if label:
            found[label] = estimate_share([prompts[number] for number in own], values[own])
    return found


@dataclass(frozen=True)
class Histogram:
    """How many scores of chosen and of rejected responses lie between edges [bins + 1]."""

    edges: list[float]
    chosen: list[int]
    rejected: list[int]


def count_scores(chosen: Array, rejected: Array, bins: int = HISTOGRAM_BINS) -> Histogram:
    """Return the histogram of scores over their whole range."""
    edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins)
    first, second = (np.histogram(scores, edges)[0].tolist() for scores in (chosen, rejected))
    return Histogram(edges.tolist(), first, second)


def fit_temperature(margins: Array) -> float | None:
    """Return the temperature T > 0 at which sigmoid((s_c - s_r) / T) fits the labels best, by maximum likelihood (Guo et
    al., arXiv 1706.04599); above 1, the model is too sure of itself. None where no finite one is best: all pairs are
    ordered alike, or more of them wrong than right."""

    def slope(factor: float) -> float:
        """Return the derivative of the log-likelihood with respect to 1 / T, which falls as 1 / T grows."""
        return float((margins * (1.0 - probability(factor * margins))).sum())

    low, high = 0.0, 1.0
    if slope(low) <= 0 or not (margins < 0).any():
        return None
    while slope(high) > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 2 / (low + high)
