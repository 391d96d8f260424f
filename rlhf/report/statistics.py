"""Means over seeds with their intervals, and tests of whether two means differ.

Two kinds of error are kept apart. A standard error over prompts says how far one run's mean over held-out prompts may be
from its mean over all prompts. An interval over seeds says how far the mean of some runs may be from the mean of all runs
of that configuration: it holds what the prompts add, and what training adds, which a single run cannot tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
METHOD = (
    f"Intervals over seeds are {LEVEL:.0%} intervals of the mean by Student's t, which take each seed as one draw of a "
    "normal distribution; wide for two seeds, and one seed has none. SE is the standard error of one run's mean over "
    "held-out prompts (the root mean square over the seeds): it says nothing of other seeds."
)
Array = NDArray[np.float64]
# Points of the integral over Student's distribution.
ANGLES = 4001


@dataclass(frozen=True)
class Estimate:
    """A mean of n values and its interval; None for both bounds if n is 1."""

    n: int
    mean: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of the values and its interval, whatever their order; None without values."""
    if not values:
        return None
    n, mean = len(values), math.fsum(values) / len(values)
    mean = min(max(mean, min(values)), max(values))  # rounding must not leave the range of equal values
    if n == 1:
        return Estimate(1, mean, None, None)
    half = student_quantile(n - 1) * math.sqrt(variance(values) / n)
    return Estimate(n, mean, mean - half, mean + half)


def variance(values: Sequence[float]) -> float:
    """Return the unbiased variance of two values or more."""
    mean = math.fsum(values) / len(values)
    return math.fsum(sorted((value - mean) ** 2 for value in values)) / (len(values) - 1)


@lru_cache(maxsize=1024)
def student_integral(df: float) -> tuple[Array, Array]:
    """Return angles from 0 to a right angle, and Student's probability of |t| <= sqrt(df) * tan(angle) for each.

    With t = sqrt(df) tan(angle) the density (1 + t^2 / df)^(-(df + 1) / 2) dt becomes cos(angle)^(df - 1), which has no
    tails to cut off.
    """
    angles = np.linspace(0.0, math.pi / 2, ANGLES)
    density = np.cos(angles[:-1] + angles[1] / 2) ** (df - 1)
    shares = np.concatenate([[0.0], np.cumsum(density)])
    return angles, shares / shares[-1]


def student_quantile(df: float, level: float = LEVEL) -> float:
    """Return the t within whose distance from 0 so large a share of Student's distribution lies."""
    angles, shares = student_integral(df)
    return math.sqrt(df) * math.tan(float(np.interp(level, shares, angles)))


def student_p(t: float, df: float) -> float:
    """Return the two-sided p-value of a t with so many degrees of freedom (at least 1)."""
    angles, shares = student_integral(df)
    return 1.0 - float(np.interp(math.atan(abs(t) / math.sqrt(df)), angles, shares))


def welch_p(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Welch's t-test that two sets of seeds have one mean; None where it says nothing: with
    fewer than two values on a side, or without any spread."""
    if min(len(one), len(other)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (one, other)]
    error = sum(parts)
    if error == 0:
        return None
    # Welch and Satterthwaite's degrees of freedom.
    df = error**2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True))
    return student_p((math.fsum(one) / len(one) - math.fsum(other) / len(other)) / math.sqrt(error), df)


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the t-test that differences within seeds have the mean 0; None where it says
    nothing."""
    if len(differences) < 2 or (spread := variance(differences)) == 0:
        return None
    return student_p(math.fsum(differences) / len(differences) / math.sqrt(spread / len(differences)), len(differences) - 1)


def normal_p(difference: float, error: float) -> float | None:
    """Return the two-sided p-value of a difference with a known standard error; None without an error."""
    return None if error <= 0 else math.erfc(abs(difference) / error / math.sqrt(2))


def root_mean_square(values: Sequence[float]) -> float | None:
    """Return the root mean square; None without values."""
    return math.sqrt(math.fsum(value**2 for value in values) / len(values)) if values else None


def spread(values: Array) -> tuple[Array, Array, Array]:
    """Return the mean, the least and the largest of each column of `values` [seeds, columns], NaN where a column has none;
    NaN is a missing value."""
    known = np.isfinite(values)
    n = known.sum(axis=0)
    mean = np.where(n, np.where(known, values, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan)
    low, high = np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)
    return mean, np.where(n, low, np.nan), np.where(n, high, np.nan)
