"""The metrics of a rollout's updates: sums over micro-batches, reduced over ranks at the end."""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf.config.schema import Ppo
from rlhf.runtime.distributed import maximum, total

# A number on the host, or one on the device, which the host reads at the end alone.
Amount = float | Tensor


class UpdateMetrics:
    """Collects what the updates of one rollout measure. `is_first` is true until the first update is done.

    Numbers of the device are added up there, in double precision, as the host would: it does not wait for the device until
    they are asked for, so that one micro-batch is launched while another is computed.
    """

    def __init__(self) -> None:
        self.is_first = True
        self.sums: dict[str, Amount] = defaultdict(float)
        self.largest: dict[str, Tensor] = {}
        self.first_gap_max = 0.0
        self.norms: dict[str, list[float]] = defaultdict(list)
        self.overflows: dict[str, int] = defaultdict(int)
        self.updates = 0
        self.before: tuple[float, ...] = (0.0, 0.0)
        self.text_lengths: list[int] = []
        self.rates: dict[str, float] = {}

    def add(self, sums: Mapping[str, Amount]) -> None:
        """Add to sums over micro-batches."""
        for name, amount in sums.items():
            self.sums[name] = self.sums[name] + (amount.detach().double() if isinstance(amount, Tensor) else amount)

    def add_largest(self, amounts: Mapping[str, Tensor]) -> None:
        """Note the largest of a micro-batch, where it is larger than 0 and all before."""
        for name, amount in amounts.items():
            former = self.largest.get(name, torch.zeros_like(amount))
            self.largest[name] = torch.fmax(former, amount.detach())

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
        self.add_largest({"first_gap": gaps.max()})
        self.add({"first_gaps": gaps.sum(), "first_tokens": mask.sum()})

    def passes(self, ppo: Ppo) -> float:
        """Return how many passes over the rollout were made: fewer than planned where ppo.early_stop_kl ended them."""
        return self.updates * ppo.batch_size / ppo.rollout_batch_size

    def last_kl(self) -> float:
        """Return the approximate KL(old || new) per token of the last mini-batch over all ranks, before its update. All
        ranks must call this after each update."""
        now = read_numbers(self.sums["policy/approx_kl"], self.sums["tokens"])
        kl, tokens = total(*(amount - before for amount, before in zip(now, self.before, strict=True)))
        self.before = now
        return kl / max(1.0, tokens)

    def first_gap(self) -> tuple[float, float]:
        """Return how far the first mini-batch's log-probabilities are from the rollout's, in nats over all ranks: the mean
        over tokens, and the largest."""
        self.first_gap_max = maximum(float(self.largest.get("first_gap", 0.0)))
        gaps, tokens = total(*read_numbers(self.sums.pop("first_gaps", 0.0), self.sums.pop("first_tokens", 0.0)))
        return gaps / max(1.0, tokens), self.first_gap_max

    def reduce(self) -> dict[str, float]:
        """Return the metrics over all ranks."""
        names = sorted(self.sums)
        sums = dict(zip(names, total(*read_numbers(*(self.sums[name] for name in names))), strict=True))
        text_tokens = sums.pop("text_tokens", 0.0)
        tokens, losses = max(1.0, sums.pop("tokens")), max(1.0, sums.pop("losses", 0.0))
        counted = {"policy/log_ratio_cut": 1.0, "policy/ptx_loss": max(1.0, text_tokens)}
        counted |= {"policy/loss": losses, "policy/kl_loss": losses}
        metrics = {name: amount / counted.get(name, tokens) for name, amount in sums.items()}
        metrics |= {f"{name}/grad_norm": sum(norms) / len(norms) for name, norms in self.norms.items() if norms}
        metrics |= {f"{name}/overflows": float(count) for name, count in self.overflows.items()}
        if "policy" in self.overflows:  # the actor has learned
            metrics["policy/ratio_first"] = math.expm1(min(self.first_gap_max, 50.0))
            metrics["policy/ratio_max"] = maximum(float(self.largest.get("ratio", 0.0)))
        return metrics | self.rates | {"policy/updates": float(self.updates)}


def read_numbers(*amounts: Amount) -> tuple[float, ...]:
    """Return numbers on the host; those on the device are read together."""
    there = [amount.double() for amount in amounts if isinstance(amount, Tensor)]
    found = iter(torch.stack(there).tolist() if there else [])
    return tuple(next(found) if isinstance(amount, Tensor) else amount for amount in amounts)


def ppo_updates(ppo: Ppo) -> int:
    """Return the number of updates on a rollout."""
    return ppo.update_epochs * (ppo.rollout_batch_size // ppo.batch_size)
