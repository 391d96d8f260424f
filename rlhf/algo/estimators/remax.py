"""REINFORCE with the score of the likeliest response as the baseline: ReMax."""

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.groups import reward_to_go
from rlhf.config.schema import Ppo


def estimate_remax(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Sum the rewards from each action on, and subtract the score of the greedy response to the same prompt (arXiv
    2310.10505, algorithm 2). The KL penalties from the action on count, as in verl; the reference code counts that of the
    action alone."""
    assert rollout.greedy_scores is not None
    returns = reward_to_go(rollout.rewards, rollout.mask, config.gamma)
    return Credit((returns - rollout.greedy_scores[:, None]) * rollout.mask)
