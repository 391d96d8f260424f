"""The distance from the group's mean, in its standard deviations (GRPO) or as it is (Dr. GRPO, REINFORCE++-baseline)."""

from dataclasses import replace

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.groups import baseline_subject, group_means, group_stds, subtract_baseline
from rlhf.config.schema import Ppo

# Added to a group's standard deviation, as in verl: a group of equal scores has advantages of 0.
EPSILON = 1e-6


def estimate_grpo(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Subtract the mean reward of the responses to the prompt and, with `ppo.group_std`, divide by their standard deviation
    (n - 1): arXiv 2402.03300, section 4.1.2; without it, arXiv 2503.20783, section 3.2."""
    rewards = baseline_subject(rollout, config)
    groups = rewards, rollout.copies, rollout.is_scored
    credit = subtract_baseline(rollout, config, group_means(*groups), rewards)
    if not config.group_std:
        return credit
    return replace(credit, advantages=credit.advantages / (group_stds(*groups) + EPSILON)[:, None])
