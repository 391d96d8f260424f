"""Generalised advantage estimation: PPO's, with a critic."""

import torch
from torch import Tensor

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.masked import zero_padding
from rlhf.config.schema import Ppo


def estimate_gae(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Estimate advantages with `ppo.gamma` and `ppo.gae_lambda`, and returns with the critic's own lambda, if it has one
    (`ppo.critic_gae_lambda`)."""
    assert rollout.values is not None
    columns = rollout.rewards, rollout.values, rollout.mask, config.gamma
    advantages, returns = advantages_and_returns(*columns, config.gae_lambda)
    if config.critic_gae_lambda is not None:
        _, returns = advantages_and_returns(*columns, config.critic_gae_lambda)
    return Credit(advantages, returns)


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
