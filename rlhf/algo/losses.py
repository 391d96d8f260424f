"""The losses of the three stages. Each is a sum over tokens (or pairs) and is divided by a count of the global batch by
its caller, so that neither ranks nor micro-batches change it."""

import torch
from torch import Tensor

from rlhf.algo.masked import masked_sum, zero_padding


def policy_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip: float, level: str = "token"
) -> tuple[Tensor, Tensor]:
    """Probability ratios [B, R] from log-ratios cut to [-clip, clip] so that exp cannot overflow, 1 on padding; and how
    many real tokens were cut (a scalar).

    At the level of the `sequence` each of its tokens has the geometric mean of their ratios (arXiv 2507.18071, eq. 7); at
    that of the `product`, the ratio of the sequence's probabilities.
    """
    log_ratio = zero_padding(logprobs, mask) - zero_padding(old_logprobs, mask)
    if level != "token":
        lengths = mask.sum(1, keepdim=True).clamp(min=1) if level == "sequence" else 1
        log_ratio = zero_padding((log_ratio.sum(1, keepdim=True) / lengths).expand(mask.shape), mask)
    cut = ((log_ratio.abs() > clip) * mask).sum()
    return log_ratio.clamp(-clip, clip).exp(), cut


def policy_loss(
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), summed over real tokens, and the number of tokens where the
    clipped term is the larger loss.

    Ratios are cut to 1 - `clip_range` and 1 + `clip_range_high` (None: clip_range too). With `dual_clip` the loss of a
    token of negative advantage is at most that times its size (arXiv 1912.09729, eq. 5). `weights` [B, 1] or of the mask's
    shape weigh tokens.
    """
    advantages = zero_padding(advantages, mask)
    high = clip_range if clip_range_high is None else clip_range_high
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    losses = torch.maximum(unclipped, clipped)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    return weighted_sum(losses, mask, weights), ((clipped > unclipped) * mask).sum()


def count_clipped(
    ratio: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float | None, dual_clip: float | None
) -> dict[str, Tensor]:
    """Count the tokens whose ratio is clipped from below, from above, and by the dual clip."""
    below = (ratio < 1 - low) & (advantages < 0)
    above = (ratio > 1 + (low if high is None else high)) & (advantages > 0)
    counted = {"policy/clip_fraction_low": below, "policy/clip_fraction_high": above}
    if dual_clip is not None:
        counted["policy/dual_clip_fraction"] = (ratio > dual_clip) & (advantages < 0)
    return {name: (tokens * mask).sum() for name, tokens in counted.items()}


def likelihood_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minus the log-probabilities times the advantages, summed over real tokens: REINFORCE, and with advantages of 1
    supervised learning."""
    return weighted_sum(-zero_padding(advantages, mask) * zero_padding(logprobs, mask), mask, weights)


def weighted_sum(losses: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of losses [B, R] over real tokens, times `weights` where there are any; a scalar."""
    return masked_sum(losses if weights is None else losses * weights, mask)


def loss_weights(mask: Tensor, aggregation: str, longest: int) -> Tensor | None:
    """Return what `ppo.loss_aggregation` multiplies the loss of each token by, before the sum over the update is divided by
    `count_losses`: 1 over the response's tokens (`sequence_mean`), or over the most tokens that a response may have
    (`constant`: Dr. GRPO, arXiv 2503.20783); None for 1."""
    if aggregation == "sequence_mean":
        return 1.0 / mask.sum(1, keepdim=True).clamp(min=1)
    if aggregation == "constant":
        return torch.full_like(mask[:, :1], 1.0 / longest, dtype=torch.float32)
    return None


def count_losses(mask: Tensor, aggregation: str) -> Tensor:
    """Return what the loss of an update is divided by: its trained actions (`token_mean`), or its responses that have
    any."""
    return mask.sum() if aggregation == "token_mean" else mask.any(1).sum()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of values [B, R], the larger of the error as it is and with the value kept within
    `clip_range` of the old one, summed over real tokens; and the number of tokens where the clipped one is larger."""
    values, old_values, returns = (zero_padding(column, mask) for column in (values, old_values, returns))
    clipped_values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    return 0.5 * masked_sum(torch.maximum(plain, clipped), mask), ((clipped > plain) * mask).sum()
