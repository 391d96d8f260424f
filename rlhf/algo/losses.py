"""The losses of the three stages. Each is a sum over tokens (or pairs) and is divided by a count of the global batch by
its caller, so that neither ranks nor micro-batches change it."""

import torch
from torch import Tensor

from rlhf.algo.masked import masked_sum, zero_padding


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Probability ratios [B, R] from log-ratios cut to [-clip, clip] so that exp cannot overflow, 1 on padding; and how
    many real tokens were cut (a scalar)."""
    log_ratio = zero_padding(logprobs, mask) - zero_padding(old_logprobs, mask)
    cut = ((log_ratio.abs() > clip) * mask).sum()
    return log_ratio.clamp(-clip, clip).exp(), cut


def policy_loss(ratio: Tensor, advantages: Tensor, mask: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), summed over real tokens, and the number of tokens where the
    clipped term is the larger loss."""
    advantages = zero_padding(advantages, mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return masked_sum(torch.maximum(unclipped, clipped), mask), ((clipped > unclipped) * mask).sum()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of values [B, R], the larger of the error as it is and with the value kept within
    `clip_range` of the old one, summed over real tokens; and the number of tokens where the clipped one is larger."""
    values, old_values, returns = (zero_padding(column, mask) for column in (values, old_values, returns))
    clipped_values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    return 0.5 * masked_sum(torch.maximum(plain, clipped), mask), ((clipped > plain) * mask).sum()
