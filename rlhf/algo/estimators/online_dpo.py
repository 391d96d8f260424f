"""Direct preference optimisation of the better of two responses of the current policy: online DPO."""

import torch

from rlhf.algo.estimators import Credit, ScoredRollout
from rlhf.algo.masked import masked_sum_rows
from rlhf.config.schema import Ppo


def estimate_online_dpo(rollout: ScoredRollout, config: Ppo) -> Credit:
    """Weigh the better of two responses by b = 2 beta sigmoid(-beta delta) and the other one by -b, where delta is the
    difference of their summed log-ratios to the reference and beta is `ppo.kl_coef` (arXiv 2402.04792).

    With the log-likelihood as the loss, summed over tokens and averaged over responses, this is the gradient of the DPO
    loss, -log sigmoid(beta delta), averaged over pairs, in the one update that a rollout has. Of equal scores the first
    response counts as better, as in TRL; of a pair with a response that no reward applies to none is learned from.
    """
    assert rollout.kl is not None
    implied = config.kl_coef * masked_sum_rows(rollout.kl, rollout.mask).view(-1, 2)  # [B / 2, 2]
    scores = rollout.scores.view(-1, 2)
    sign = torch.where(scores[:, 0] >= scores[:, 1], 1.0, -1.0)
    margin = sign * (implied[:, 0] - implied[:, 1])
    weight = 2 * config.kl_coef * sign * torch.sigmoid(-margin)
    advantages = torch.stack([weight, -weight], 1).flatten()[:, None] * rollout.mask
    if rollout.is_scored is None:
        return Credit(advantages)
    return Credit(advantages, trained=rollout.is_scored.view(-1, 2).all(1).repeat_interleave(2))
