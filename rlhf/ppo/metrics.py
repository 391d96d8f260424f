"""The metrics of a rollout's updates: sums over micro-batches, reduced over ranks at the end."""

import math
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from rlhf.config.schema import Ppo
from rlhf.runtime.distributed import maximum, total


class UpdateMetrics:
    """Collects what the updates of one rollout measure. `is_first` is true until the first update is done."""

    def __init__(self) -> None:
        self.is_first = True
        self.sums: dict[str, float] = defaultdict(float)
        self.ratio_max = self.first_gap_max = 0.0
        self.first_gaps = self.first_tokens = 0.0
        self.norms: dict[str, list[float]] = defaultdict(list)
        self.overflows: dict[str, int] = defaultdict(int)
        self.updates = 0
        self.before = (0.0, 0.0)
        self.text_tokens = 0.0
        self.text_lengths: list[int] = []
        self.rates: dict[str, float] = {}

    def add(self, sums: Mapping[str, float]) -> None:
        """Add to sums over micro-batches."""
        for name, amount in sums.items():
            self.sums[name] += amount

    def add_norms(self, norms: Mapping[str, float]) -> None:
        """Add the gradient norms of an update, by `policy` and `value`; one that is not finite counts as an overflow: no
        model took the update."""
        self.updates += 1
        for name, norm in norms.items():
            self.overflows[name] += not math.isfinite(norm)
            if math.isfinite(norm):
                self.norms[name].append(norm)

    def add_gaps(self, gaps: Tensor, mask: Tensor) -> None:
        """Add how far log-probabilities of the first mini-batch are from the rollout's, [B, R]."""
        gaps = gaps * mask
        self.first_gap_max = max(self.first_gap_max, float(gaps.max()))
        self.first_gaps += float(gaps.sum())
        self.first_tokens += float(mask.sum())

    def last_kl(self) -> float:
        """Return the approximate KL(old || new) per token of the last mini-batch over all ranks, before its update. All
        ranks must call this after each update."""
        now = self.sums["policy/approx_kl"], self.sums["tokens"]
        kl, tokens = total(*(amount - before for amount, before in zip(now, self.before, strict=True)))
        self.before = now
        return kl / max(1.0, tokens)

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
        tokens, losses = max(1.0, sums.pop("tokens")), max(1.0, sums.pop("losses", 0.0))
        counted = {"policy/log_ratio_cut": 1.0, "policy/ptx_loss": max(1.0, text_tokens)}
        counted |= {"policy/loss": losses, "policy/kl_loss": losses}
        metrics = {name: amount / counted.get(name, tokens) for name, amount in sums.items()}
        metrics |= {f"{name}/grad_norm": sum(norms) / len(norms) for name, norms in self.norms.items() if norms}
        metrics |= {f"{name}/overflows": float(count) for name, count in self.overflows.items()}
        if "policy" in self.overflows:  # the actor has learned
            metrics["policy/ratio_first"] = math.expm1(min(self.first_gap_max, 50.0))
            metrics["policy/ratio_max"] = maximum(self.ratio_max)
        return metrics | self.rates | {"policy/updates": float(self.updates)}


def ppo_updates(ppo: Ppo) -> int:
    """Return the number of updates on a rollout."""
    return ppo.update_epochs * (ppo.rollout_batch_size // ppo.batch_size)
