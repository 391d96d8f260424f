"""The distance from the group's mean, in its standard deviations (GRPO) or as it is (Dr. GRPO, REINFORCE++-baseline); of
all rewards together, or of each (GDPO)."""

from dataclasses import replace

import torch

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.groups import EPSILON, baseline_subject, group_means, group_stds, subtract_baseline
from rlhf.algo.masked import whiten
from rlhf.config.schema import Ppo


def estimate_grpo(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Subtract the mean reward of the responses to the prompt and, with `ppo.group_std`, divide by their standard deviation
    (n - 1): arXiv 2402.03300, section 4.1.2; without it, arXiv 2503.20783, section 3.2. With `ppo.group_of=each` that was
    done to each reward, and their sum is normalised over the responses of the rollout: GDPO, arXiv 2601.05242."""
    if config.group_of == "each":
        return estimate_gdpo(rollout)
    rewards = baseline_subject(rollout, config)
    groups = rewards, rollout.copies, rollout.is_scored
    credit = subtract_baseline(rollout, config, group_means(*groups), rewards)
    if not config.group_std:
        return credit
    return replace(credit, advantages=credit.advantages / (group_stds(*groups) + EPSILON)[:, None])


def estimate_gdpo(rollout: ScoredRollout) -> Credit:
    """Give all actions of a response its sum of normalised rewards, to mean 0 and deviation 1 over all that are scored."""
    assert rollout.group_scores is not None
    sums = rollout.group_scores[:, None]  # [B, 1]
    counted = torch.ones_like(sums) if rollout.is_scored is None else rollout.is_scored[:, None]
    return Credit(whiten(sums, counted) * rollout.mask)
