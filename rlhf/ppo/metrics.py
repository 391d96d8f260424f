"""The metrics of a rollout's updates: sums over micro-batches, reduced over ranks at the end."""

import math
from collections import defaultdict

from rlhf.runtime.distributed import maximum, total


class UpdateMetrics:
    """Collects what the updates of one rollout measure. `is_first` is true until the first update is done."""

    def __init__(self) -> None:
        self.is_first = True
        self.sums: dict[str, float] = defaultdict(float)
        self.ratio_max = self.first_gap_max = 0.0
        self.first_gaps = self.first_tokens = 0.0
        self.norms: dict[str, list[float]] = {"policy": [], "value": []}
        self.overflows = {"policy": 0, "value": 0}
        self.text_tokens = 0.0
        self.text_lengths: list[int] = []
        self.rates = (0.0, 0.0)

    def add_norms(self, policy: float, value: float) -> None:
        """Add the gradient norms of an update; one that is not finite counts as an overflow: both models skipped it."""
        for name, norm in (("policy", policy), ("value", value)):
            if math.isfinite(norm):
                self.norms[name].append(norm)
            else:
                self.overflows[name] += 1

    def first_gap(self) -> tuple[float, float]:
        """Return how far the first mini-batch's log-probabilities are from the rollout's, in nats over all ranks: the mean
        over tokens, and the largest."""
        self.first_gap_max = maximum(self.first_gap_max)
        gaps, tokens = total(self.first_gaps, self.first_tokens)
        return gaps / max(1.0, tokens), self.first_gap_max

    def reduce(self) -> dict[str, float]:
        """Return the metrics over all ranks."""
        names = sorted(self.sums)
        *found, text_tokens = total(*(self.sums[name] for name in names), self.text_tokens)
        sums = dict(zip(names, found, strict=True))
        tokens = max(1.0, sums.pop("tokens"))
        counted = {"policy/log_ratio_cut": 1.0, "policy/ptx_loss": max(1.0, text_tokens)}
        metrics = {name: amount / counted.get(name, tokens) for name, amount in sums.items()}
        metrics |= {f"{name}/grad_norm": sum(norms) / len(norms) for name, norms in self.norms.items() if norms}
        metrics |= {f"{name}/overflows": float(count) for name, count in self.overflows.items()}
        metrics["policy/ratio_first"] = math.expm1(min(self.first_gap_max, 50.0))
        metrics["policy/ratio_max"] = maximum(self.ratio_max)
        return metrics | {"lr/actor": self.rates[0], "lr/critic": self.rates[1]}
