"""Supervised learning of the best responses: RAFT."""

import torch

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.masked import gather_rows, masked_sum_rows
from rlhf.config.schema import Ppo


def estimate_raft(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Give the best response to each prompt an advantage of 1, or, with `ppo.best_share`, the best share of all responses
    of the rollout (arXiv 2304.06767, algorithm 1); all others are left out of the loss. The best has the highest sum of
    rewards, KL penalty included where it is in the reward. Of equal ones the first counts."""
    scores = masked_sum_rows(rollout.rewards, rollout.mask)
    if rollout.is_scored is not None:
        scores = torch.where(rollout.is_scored.bool(), scores, -torch.inf)
    if config.best_share is None:
        groups = scores.view(-1, rollout.copies)
        first = (groups == groups.amax(1, keepdim=True)).int().argmax(1)
        trained = torch.zeros_like(groups).scatter(1, first[:, None], 1.0).flatten().bool()
    else:
        everyone, start = gather_rows(scores)
        count = max(1, round(config.best_share * len(everyone)))
        best = torch.zeros_like(everyone, dtype=torch.bool)
        best[everyone.argsort(descending=True, stable=True)[:count]] = True
        trained = best[start : start + len(scores)]
    return Credit(rollout.mask * trained[:, None].float(), trained=trained)
