"""Token rewards and generalised advantage estimation. B responses of at most R tokens; masks are 1 on real tokens."""

import torch
from torch import Tensor

from rlhf.algo.masked import zero_padding


def shape_scores(scores: Tensor, ended: Tensor, clip: float | None, eos_penalty: float | None, mode: str) -> Tensor:
    """Sequence scores as PPO sees them, [B].

    `ended` [B] tells which responses closed with end-of-text; the others have their score replaced by `eos_penalty`
    (arXiv 2403.17031, detail 16: -1, for scores of mean 0), or the size of `eos_penalty` subtracted (TRL's
    `missing_eos_penalty`), whatever its sign: a penalty never raises a score. Scores are cut to [-clip, clip] first.
    """
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    if eos_penalty is None:
        return scores
    penalised = torch.full_like(scores, eos_penalty) if mode == "replace" else scores - abs(eos_penalty)
    return torch.where(ended, scores, penalised)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards per token, [B, R]: -kl_coef times `kl` (k1: log-probability minus the reference's) on every action, and
    the sequence's score on its last action, end-of-text included (arXiv 2203.02155, eq. 2; arXiv 1909.08593)."""
    rewards = -kl_coef * zero_padding(kl, mask)
    last = (mask.sum(dim=1).long() - 1).clamp(min=0)
    return rewards.scatter_add(1, last[:, None], (scores * (mask.sum(dim=1) > 0))[:, None].to(rewards.dtype))


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16) and the returns A + V, both [B, R], 0 on padding.

    The value after the last action is 0: the episode is over.
    """
    values, rewards = zero_padding(values, mask), zero_padding(rewards, mask)
    advantages = torch.zeros_like(values)
    after_value = torch.zeros_like(values[:, 0])
    after_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        delta = rewards[:, t] + gamma * after_value - values[:, t]
        after_advantage = (delta + gamma * gae_lambda * after_advantage) * mask[:, t]
        advantages[:, t] = after_advantage
        after_value = values[:, t]
    return advantages, (advantages + values) * mask
