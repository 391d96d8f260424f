"""REINFORCE with the other responses to the prompt as the baseline: RLOO."""

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.groups import baseline_subject, other_means, subtract_baseline
from rlhf.config.schema import Ppo


def estimate_rloo(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Subtract the mean reward of the *other* responses to the prompt, KL penalty included (arXiv 2402.14740, eq. 7):
    K / (K - 1) times the distance from the group's mean."""
    rewards = baseline_subject(rollout, config)
    return subtract_baseline(rollout, config, other_means(rewards, rollout.copies, rollout.is_scored), rewards)
