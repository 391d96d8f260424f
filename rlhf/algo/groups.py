"""Statistics of groups: the responses to one prompt, `copies` rows one after another. Ranks hold whole groups, so that none
of this depends on their number."""

import torch
from torch import Tensor

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.masked import last_action, masked_sum_rows, zero_padding
from rlhf.config.schema import Ppo


def group_means(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return the mean of each score's group, [B], of those that are `counted` [B] (None: all)."""
    groups, weights = in_groups(scores, copies, counted)
    return ((groups * weights).sum(1) / weights.sum(1).clamp(min=1)).repeat_interleave(copies)


def group_stds(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return the standard deviation (n - 1) of each score's group, [B], of those that are `counted`; 0 of one alone."""
    groups, weights = in_groups(scores, copies, counted)
    means = group_means(scores, copies, counted).view_as(groups)
    squares = ((groups - means) ** 2 * weights).sum(1)
    return (squares / (weights.sum(1) - 1).clamp(min=1)).sqrt().repeat_interleave(copies)


def other_means(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return the mean of the other scores of each score's group, [B], of those that are `counted`; where there is no other,
    the score itself."""
    groups, weights = in_groups(scores, copies, counted)
    others = weights.sum(1, keepdim=True) - weights
    means = ((groups * weights).sum(1, keepdim=True) - groups * weights) / others.clamp(min=1)
    return torch.where(others > 0, means, groups).flatten()


def in_groups(scores: Tensor, copies: int, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scores by group, [B / copies, copies], and weights of 1 where they count."""
    groups = scores.view(-1, copies)
    return groups, torch.ones_like(groups) if counted is None else counted.view(-1, copies).to(groups.dtype)


def varies(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Whether the scores of each group that are `counted` differ, [B / copies]; one that is not a number differs from
    all."""
    groups, weights = in_groups(scores, copies, counted)
    highest, lowest = (torch.where(weights > 0, groups, sign * torch.inf) for sign in (-1, 1))
    return (highest.amax(1) != lowest.amin(1)) & (weights.sum(1) > 0)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum of the rewards from each action on, [B, R], 0 on padding."""
    rewards = zero_padding(rewards, mask)
    returns = rewards.clone()
    for t in reversed(range(rewards.size(1) - 1)):
        returns[:, t] += gamma * returns[:, t + 1]
    return returns * mask


def subtract_baseline(rollout: ScoredRollout, config: Ppo, baseline: Tensor, of: Tensor) -> Credit:
    """Give each action of a response the same advantage, `of` less `baseline`, both [B]. Of scores alone
    (`ppo.baseline_of=score`), the KL penalties from the action on are added, as in OpenRLHF."""
    advantages = (of - baseline)[:, None].expand(rollout.rewards.shape)
    if config.baseline_of == "score":
        penalties = rollout.rewards - last_action(rollout.mask) * rollout.scores[:, None]
        advantages = advantages + reward_to_go(penalties, rollout.mask, config.gamma)
    return Credit(zero_padding(advantages, rollout.mask))


def baseline_subject(rollout: ScoredRollout, config: Ppo) -> Tensor:
    """Return what a baseline is subtracted from, [B]: the rewards of a response, or its score alone."""
    return rollout.scores if config.baseline_of == "score" else masked_sum_rows(rollout.rewards, rollout.mask)
