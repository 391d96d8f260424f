"""Estimators of advantages, one file each. B responses of at most R tokens; masks are 1 on real tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rlhf.config.schema import Ppo


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout as an estimator sees it.

    Attributes:
        rewards: [B, R], the KL penalty on every action and the score on the last action.
        values: [B, R], the critic's value of the state before each action.
        mask: [B, R], 1 on every action, end-of-text included.
    """

    rewards: Tensor
    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Credit:
    """What an estimator gives each action: `advantages` [B, R] for the policy's loss, and `returns` [B, R], the targets of
    the critic; both 0 on padding."""

    advantages: Tensor
    returns: Tensor


Estimator = Callable[[ScoredRollout, Ppo], Credit]
