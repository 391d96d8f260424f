"""Statistics of groups: the responses to one prompt, `copies` rows one after another. Ranks hold whole groups, so that none
of this depends on their number."""

import torch
from torch import Tensor

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.masked import last_action, masked_sum_rows, zero_padding
from rlhf.config.schema import Ppo

# Added to a group's standard deviation, as in verl: a group of equal scores has advantages of 0.
EPSILON = 1e-6


def group_means(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return the mean of each score's group, [B], of those that are `counted` [B] (None: all)."""
    groups, weights = in_groups(scores, copies, counted)
    means = (groups * weights).sum(1) / weights.sum(1).clamp(min=1)
    return means.to(scores.dtype).repeat_interleave(copies)


def group_stds(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return the standard deviation (n - 1) of each score's group, [B], of those that are `counted`; 0 of one alone."""
    groups, weights = in_groups(scores, copies, counted)
    counts = weights.sum(1, keepdim=True)
    means = (groups * weights).sum(1, keepdim=True) / counts.clamp(min=1)
    squares = ((groups - means) ** 2 * weights).sum(1, keepdim=True)
    stds = (squares / (counts - 1).clamp(min=1)).sqrt()
    return stds.to(scores.dtype).flatten().repeat_interleave(copies)


def normalize_in_groups(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return each score's distance from the mean of its group, in the group's standard deviations, [B]; 0 of one that is
    not `counted`."""
    groups = scores, copies, counted
    found = (scores - group_means(*groups)) / (group_stds(*groups) + EPSILON)
    return found if counted is None else zero_padding(found, counted)


def other_means(scores: Tensor, copies: int, counted: Tensor | None = None) -> Tensor:
    """Return the mean of the other scores of each score's group, [B], of those that are `counted`; where there is no other,
    the score itself."""
    groups, weights = in_groups(scores, copies, counted)
    others = weights.sum(1, keepdim=True) - weights
    means = ((groups * weights).sum(1, keepdim=True) - groups * weights) / others.clamp(min=1)
    return torch.where(others > 0, means, groups).to(scores.dtype).flatten()


def in_groups(scores: Tensor, copies: int, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return scores by group, [B / copies, copies], and weights of 1 where they count; in double precision, in which the
    mean of equal scores is that score: a rounding error would count as a deviation, and GRPO divide by it."""
    groups = scores.view(-1, copies).double()
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
