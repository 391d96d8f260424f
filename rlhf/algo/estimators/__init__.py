"""Estimators of advantages, one file each. B responses of at most R tokens; masks are 1 on real tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhf.config.schema import Ppo


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout as an estimator sees it. A group is all responses to one prompt, `copies` rows one after another.

    Attributes:
        rewards: [B, R], the KL penalty on every action, where it is part of the reward, and the score on the last action.
        mask: [B, R], 1 on every action, end-of-text included.
        scores: [B], of each response, after clipping and penalties.
        copies: Responses of a group.
        values: [B, R], the critic's value of the state before each action; only for an estimator that needs `values`.
        greedy_scores: [B], the score of the likeliest response to the same prompt, shaped as `scores`; only for an
            estimator that needs `greedy`.
        kl: [B, R], the log-probability of each action less the reference's, in nats, 0 on padding; only with a reference.
        is_scored: [B], 1 where any reward applies: a response without one counts in no statistic of its group; None: all.
        group_scores: [B], the weighted sum of the rewards, each normalised within its group; only with
            `ppo.group_of=each`.
    """

    rewards: Tensor
    mask: Tensor
    scores: Tensor
    copies: int = 1
    values: Tensor | None = None
    greedy_scores: Tensor | None = None
    kl: Tensor | None = None
    is_scored: Tensor | None = None
    group_scores: Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """What an estimator gives each action.

    Attributes:
        advantages: [B, R], for the policy's loss, 0 on padding.
        returns: [B, R], the targets of the critic, 0 on padding; None without a critic.
        trained: [B], whether a response is part of the loss; None for all.
    """

    advantages: Tensor
    returns: Tensor | None = None
    trained: Tensor | None = None


Estimator = Callable[[ScoredRollout, Ppo], Credit]
