"""Means over seeds with their intervals."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, LEVEL = 10_000, 0, 0.95
METHOD = (
    f"Intervals are {LEVEL:.0%} percentile bootstrap intervals of the mean over seeds ({RESAMPLES:,} resamples). "
    "With few seeds they are too narrow (of two seeds they are the two values): read them as spread, not as a test. "
    "One seed has no interval."
)
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and its interval; None for both bounds if n is 1."""

    n: int
    mean: float
    low: float | None
    high: float | None


def estimate(values: list[float]) -> Estimate | None:
    """Return the mean of the values and its interval, whatever their order; None without values."""
    return estimate_once(tuple(values)) if values else None


@lru_cache(maxsize=2**14)
def estimate_once(values: tuple[float, ...]) -> Estimate:
    """Return the estimate of some values, which the page, the tables and the terminal all ask for."""
    mean, low, high, n = bands(np.array(values, dtype=np.float64)[:, None])
    bounds = (float(low[0]), float(high[0])) if n[0] > 1 else (None, None)
    return Estimate(int(n[0]), float(mean[0]), *bounds)


def bands(values: Array) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Return mean, lower and upper bound and n of each column of `values` [seeds, columns]; NaN is a missing value. Bounds
    are NaN where n < 2, and the mean is where n is 0."""
    ordered = np.sort(values, axis=0)  # missing ones last; so the order of the seeds does not matter
    n = np.isfinite(values).sum(axis=0)
    mean, low, high = (np.full(values.shape[1], math.nan) for _ in range(3))
    for count in sorted(set(n.tolist()) - {0}):
        here = n == count
        known = ordered[:count, here]
        least, most = known[0], known[-1]
        mean[here] = np.clip(known.mean(axis=0), least, most)  # rounding must not leave the range of equal values
        if count > 1:
            means = known.T @ shares(count)  # [columns, RESAMPLES]
            means.sort(axis=1)
            low[here] = np.clip(quantile(means, 0.5 - LEVEL / 2), least, mean[here])
            high[here] = np.clip(quantile(means, 0.5 + LEVEL / 2), mean[here], most)
    return mean, low, high, n


def quantile(ordered: Array, share: float) -> Array:
    """Return a quantile of each row of sorted values, between two of them by their distance. (np.quantile takes three
    times as long as the sort.)"""
    position = share * (ordered.shape[1] - 1)
    below = int(position)
    part = position - below
    between: Array = ordered[:, below] * (1 - part) + ordered[:, below + 1] * part
    return between


@lru_cache(maxsize=64)
def shares(count: int) -> Array:
    """Resamples of `count` values, [count, RESAMPLES]: the share of each value in each."""
    drawn = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    counted = np.bincount((drawn * RESAMPLES + np.arange(RESAMPLES)[:, None]).ravel(), minlength=count * RESAMPLES)
    return counted.reshape(count, RESAMPLES) / count
