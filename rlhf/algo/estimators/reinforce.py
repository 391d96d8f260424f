"""The rewards from an action on, without a baseline: REINFORCE++, which whitens them over the rollout."""

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.groups import reward_to_go
from rlhf.config.schema import Ppo


def estimate_reinforce(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Sum the rewards from each action on, discounted by `ppo.gamma` (arXiv 2501.03262, eq. 8). The baseline is the mean
    over all tokens of the rollout, which `ppo.whiten_advantages` subtracts."""
    return Credit(reward_to_go(rollout.rewards, rollout.mask, config.gamma))
