"""What is measured of items, in training and on held-out ones: the loss, and what tells whether the policy tells good
responses from bad ones."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rlhf.algo.dpo import Logprobs, implicit_rewards, label_losses, pair_losses
from rlhf.algo.errors import ratio_with_error
from rlhf.config.schema import Dpo
from rlhf.stages.dpo.items import Found
from rlhf.stages.reward.train import fraction_correct

# What is measured of N items, [N], and how much each counts in the mean, [N].
Column = tuple[Tensor, Tensor]
NAMES = ("loss", "accuracy", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected")


def measure(found: Found, kl: float, dpo: Dpo) -> dict[str, Column]:
    """Measure items by NAMES; of single responses the desirable ones are `chosen`. `kl` is KTO's reference point, in
    nats."""
    return measure_responses(found, kl, dpo) if dpo.unpaired else measure_pairs(found, kl, dpo)


def measure_pairs(found: Found, kl: float, dpo: Dpo) -> dict[str, Column]:
    """Measure pairs: right is one whose chosen response has the higher implicit reward; a tie is half right."""
    sides = zip(found.sums.T, found.reference.T, found.tokens.T, strict=True)
    (chosen, reference, tokens), (rejected, other_reference, other_tokens) = sides
    pairs = Logprobs(chosen, rejected, reference, other_reference, tokens, other_tokens, kl)
    liked, disliked = implicit_rewards(pairs, dpo)
    columns = pair_losses(pairs, dpo), fraction_correct(liked - disliked), liked, disliked, chosen, rejected
    return {name: (column, torch.ones_like(column)) for name, column in zip(NAMES, columns, strict=True)}


def measure_responses(found: Found, kl: float, dpo: Dpo) -> dict[str, Column]:
    """Measure single responses: right is one whose implicit reward is on its label's side of KTO's reference point, above
    it if it is desirable; on the point itself it is half right."""
    ratios, logps, every = (found.sums - found.reference)[:, 0], found.sums[:, 0], torch.ones_like(found.sums[:, 0])
    good, rewards = found.desirable.float(), dpo.beta * ratios
    right = fraction_correct((ratios - kl) * (2 * good - 1))
    return {
        "loss": (label_losses(ratios, found.desirable, kl, dpo), every),
        "accuracy": (right, every),
        "reward_chosen": (rewards, good),
        "reward_rejected": (rewards, 1 - good),
        "logp_chosen": (logps, good),
        "logp_rejected": (logps, 1 - good),
    }


def summarize(
    prompts: Sequence[Hashable], columns: dict[str, tuple[list[float], list[float]]], unpaired: bool
) -> dict[str, float]:
    """Return the metrics of held-out items from the values and the counts of each name: means, of loss, accuracy and margin
    with standard errors over prompts. What no item counts in is left out."""
    metrics: dict[str, float] = {}
    for name in ("loss", "accuracy"):
        metrics |= ratio_with_error(f"eval/{name}", prompts, *columns[name])
    margins = find_margins(columns, unpaired)
    metrics |= ratio_with_error("eval/margin", prompts, margins, [1.0] * len(margins)) if margins else {}
    for name in ("logp_chosen", "logp_rejected"):
        values, counts = columns[name]
        if sum(counts) > 0:
            metrics[f"eval/{name}"] = sum(v * c for v, c in zip(values, counts, strict=True)) / sum(counts)
    return metrics


def find_margins(columns: dict[str, tuple[list[float], list[float]]], unpaired: bool) -> list[float]:
    """Return numbers whose mean is the margin: of pairs the chosen minus the rejected response's implicit reward. Of N
    single responses, n of which have the same label, with rewards r of mean m, they are the margin plus or minus
    (r - m) N / n: their spread is that of a difference of two means (the delta method). None where a label has no
    response."""
    (chosen, good), (rejected, bad) = columns["reward_chosen"], columns["reward_rejected"]
    if not unpaired:
        return [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    if not (sum(good) and sum(bad)):
        return []
    means = [sum(r * c for r, c in zip(chosen, counts, strict=True)) / sum(counts) for counts in (good, bad)]
    scales = [len(good) / sum(good), -len(bad) / sum(bad)]
    return [
        means[0] - means[1] + (reward - means[side]) * scales[side]
        for reward, side in zip(chosen, map(int, bad), strict=True)
    ]
