"""Statistics of evaluations: means with standard errors and bootstrap intervals, win rates with a sign test and without the
influence of length, pass@k, distinct-n. Functions of numpy arrays; no torch.

Prompts are what was drawn at random: every error and interval is over prompts, whose samples are averaged first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Resamples of a bootstrap interval, and of one whose every resample is a fit.
RESAMPLES, FITS = 2000, 200
# The share of resamples that an interval leaves out on both sides together.
OUTSIDE = 0.05
# Elements of an array of resamples at most: larger ones are made in parts.
CHUNK = 4_000_000
# What keeps the slopes of a logistic regression finite where length decides every comparison.
RIDGE = 1e-3


@dataclass(frozen=True)
class Estimate:
    """A measured number, with what prompts that were drawn otherwise would change in it.

    Attributes:
        mean: The mean.
        se: Its standard error; None where a single prompt or the metric's kind gives none.
        low: The lower end of its 95 % interval, or None.
        high: The upper end.
        n: How many prompts, or items, as pairs, it is of.
    """

    mean: float
    se: float | None
    low: float | None
    high: float | None
    n: int


def estimate_mean(values: Sequence[float] | np.ndarray, counts: Sequence[float] | np.ndarray | None = None) -> Estimate:
    """Estimate sum(values) / sum(counts) from one value (and count, by default 1) per prompt.

    The standard error is sqrt(n / (n - 1) * sum (v - r c)^2) / sum c, of a mean s / sqrt(n) (Cochran, Sampling Techniques,
    3rd edition, equation 6.13). The interval is the percentile bootstrap's over prompts (Efron and Tibshirani 1993, section
    13.3), the same at every call.
    """
    amounts = np.asarray(values, dtype=np.float64)
    sizes = np.ones_like(amounts) if counts is None else np.asarray(counts, dtype=np.float64)
    n, total = len(amounts), float(sizes.sum())
    ratio = float(amounts.sum()) / total
    if n < 2:
        return Estimate(ratio, None, None, None, n)
    squares = float(((amounts - ratio * sizes) ** 2).sum())
    low, high = bootstrap_ratio(amounts, sizes)
    return Estimate(ratio, math.sqrt(n / (n - 1) * squares) / total, low, high, n)


def bootstrap_ratio(amounts: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of sum(amounts) / sum(sizes), both [n]."""
    n = len(amounts)
    parts = remember_draws(n, resamples) if n * resamples <= CHUNK else count_draws(n, resamples)
    return take_interval(np.concatenate([part @ amounts / (part @ sizes) for part in parts]))


def count_draws(n: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield, in parts, how often each of n prompts is drawn in each resample, [resamples, n]; the same at every call."""
    draw = np.random.default_rng(0)
    for start in range(0, resamples, step := max(1, CHUNK // n)):
        chosen = draw.integers(0, n, (min(step, resamples - start), n))
        places = chosen + n * np.arange(len(chosen))[:, None]
        yield np.bincount(places.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)


@lru_cache(maxsize=2)
def remember_draws(n: int, resamples: int) -> tuple[np.ndarray, ...]:
    """Return the draws of n prompts: a report asks for those of the same number a thousand times."""
    return tuple(count_draws(n, resamples))


def take_interval(resampled: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval that holds all but OUTSIDE of resampled values."""
    low, high = np.quantile(resampled, [OUTSIDE / 2, 1 - OUTSIDE / 2])
    return float(low), float(high)


def compare_scores(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return 1 where the second score is higher, 0 where the first is, 1/2 where they are equal."""
    return np.where(second > first, 1.0, np.where(second < first, 0.0, 0.5))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test, that a win is as likely as a loss; ties are left out."""
    n, most = wins + losses, max(wins, losses)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * tail / (1 << n))


def length_controlled_win(wins: np.ndarray, differences: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the win rate at equal lengths: sigmoid(a) of the logistic regression
    P(win) = sigmoid(a + b tanh(d / s)), d the difference in length (second less first) and s its standard deviation.

    That is the regression of AlpacaEval 2 (Dubois et al., arXiv 2404.04475, equation 2) without its term for the difficulty
    of each instruction, which is fitted over many models. Newton's method, with a ridge of RIDGE on both coefficients.

    Args:
        wins: 1, 0 or 1/2 for each prompt, [n].
        differences: Differences in length, [n].
        weights: How often each prompt counts, by default once.
    """
    counts = np.ones_like(wins) if weights is None else weights
    deviation = float(differences.std()) or 1.0
    inputs = np.stack([np.ones_like(wins), np.tanh(differences / deviation)], axis=1)  # [n, 2]
    slopes = np.zeros(2)
    for _ in range(50):
        expected = 1 / (1 + np.exp(-inputs @ slopes))
        gradient = inputs.T @ (counts * (wins - expected)) - RIDGE * slopes
        curvature = (inputs * (counts * expected * (1 - expected))[:, None]).T @ inputs + RIDGE * np.eye(2)
        change = np.linalg.solve(curvature, gradient)
        slopes = slopes + np.clip(change, -2, 2)
        if float(np.abs(change).max()) < 1e-9:
            break
    return float(1 / (1 + np.exp(-slopes[0])))


def estimate_length_controlled(wins: np.ndarray, differences: np.ndarray) -> Estimate:
    """Estimate the win rate at equal lengths, with the percentile bootstrap's interval over prompts."""
    n, draw = len(wins), np.random.default_rng(0)
    mean = length_controlled_win(wins, differences)
    if n < 2:
        return Estimate(mean, None, None, None, n)
    drawn = (np.bincount(draw.integers(0, n, n), minlength=n).astype(np.float64) for _ in range(FITS))
    found = np.array([length_controlled_win(wins, differences, weights) for weights in drawn])
    low, high = take_interval(found)
    return Estimate(mean, float(found.std(ddof=1)), low, high, n)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the chance that one of k samples at least is right, drawn without replacement from `samples` of which `right`
    are: 1 - C(n - c, k) / C(n, k), the unbiased estimate of pass@k (Chen et al., arXiv 2107.03374, equation 1)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def count_ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of a text's words, repeated ones too."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[str], n: int) -> float | None:
    """Return the share of different n-grams of words among all of some texts (Li et al., arXiv 1510.03055); None where no
    text has n words. It falls as texts become more or longer: compare equally many of about one length."""
    grams = [gram for text in texts for gram in count_ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated_share(text: str, n: int = 3) -> float:
    """Return the share of a text's n-grams of words that came before in it; 0 of a text shorter than n words."""
    grams = count_ngrams(text.split(), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
