"""The best of n responses: what it is worth, from a pool of N >= n of them, and how far it is from the policy. No torch."""

import math
from collections.abc import Sequence
from itertools import groupby


def estimate_best_of(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Estimate without bias the value of the response with the highest score among n, from N >= n drawn alike: the mean
    over all choices of n (Nakano et al., arXiv 2112.09332, appendix I). Of equal scores each is as likely to be taken.

    Args:
        scores: Of each response, what is chosen by; -inf for one that any other is better than.
        values: Of each response, what is measured; as `scores`, or a gold reward.
        n: How many are drawn.
    """
    count = len(scores)
    order = sorted(range(count), key=lambda index: scores[index])
    rank, found = 0, 0.0
    for _, group in groupby(order, key=lambda index: scores[index]):
        tied = list(group)
        weight = math.comb(rank + len(tied), n) - math.comb(rank, n)  # choices of n whose best is among these
        found += weight * math.fsum(values[index] for index in tied) / len(tied)
        rank += len(tied)
    return found / math.comb(count, n)


def bound_kl(n: int) -> float:
    """Return the bound of the KL of best-of-n to the policy, in nats: log n - (n - 1) / n (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n
