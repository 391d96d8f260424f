"""Standard errors of held-out figures. Prompts are what was drawn at random: answers to one prompt, and the tokens of one
answer, resemble each other, so the errors are taken over prompts."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

# Two-sided 95 % of the normal distribution.
Z = 1.959963984540054


def mean_with_error(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the metric `name`, the mean of one value per prompt, and its standard error `<name>_se`: s / sqrt(n), s the
    standard deviation with n - 1. A single value has no error."""
    return ratio_with_error(name, range(len(values)), values, [1.0] * len(values))


def ratio_with_error(
    name: str, prompts: Sequence[Hashable], amounts: Sequence[float], counts: Sequence[float]
) -> dict[str, float]:
    """Return the metric `name`, sum of amounts / sum of counts, and its standard error `<name>_se` over prompts.

    Items with the same entry of `prompts` belong together. With A and C the sums of a prompt's amounts and counts, n the
    number of prompts and r the ratio, the error is sqrt(n / (n - 1) * sum (A - r C)^2) / sum C: the delta method for a
    ratio of two sums (Cochran, Sampling Techniques, 3rd edition, equation 6.13). One prompt alone has no error.
    """
    sums: dict[Hashable, list[float]] = {}
    for prompt, amount, count in zip(prompts, amounts, counts, strict=True):
        known = sums.setdefault(prompt, [0.0, 0.0])
        known[0] += amount
        known[1] += count
    amount_sums, count_sums = np.array(list(sums.values()), dtype=np.float64).T
    total, n = float(count_sums.sum()), len(sums)
    ratio = float(amount_sums.sum()) / total
    if n < 2:
        return {name: ratio}
    squares = float(((amount_sums - ratio * count_sums) ** 2).sum())
    return {name: ratio, f"{name}_se": math.sqrt(n / (n - 1) * squares) / total}


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of n independent items, which need not be whole (Wilson 1927; Brown, Cai and
    DasGupta 2001, equation 4)."""
    spread = Z**2 / n
    centre, half = share + spread / 2, Z * math.sqrt(share * (1.0 - share) / n + spread / (4 * n))
    return max(0.0, (centre - half) / (1.0 + spread)), min(1.0, (centre + half) / (1.0 + spread))
