"""Rewards: what scores the responses that a policy is trained on. Each has a name, and they are summed by weight."""

from dataclasses import dataclass
from typing import Any

from rlhf.config.metadata import COEFFICIENT, FINITE, FROM_ZERO, Range, above_zero, key


@dataclass
class RewardTerm:
    """A reward of the sum. A key that a configuration leaves out has its neutral value, but for `kind`."""

    kind: str = key(choices=("model", "ensemble", "function", "http"), neutral="model")
    weight: float = key(FINITE, neutral=1.0)
    clip: float | None = key(above_zero(1e9), neutral=None)
    normalize: str = key(choices=("none", "running", "batch"), neutral="none")
    path: str | None = key(neutral=None, content="model")
    members: int = key(Range(2, 64), neutral=4)
    combine: str = key(choices=("mean", "min", "mean_minus_std"), neutral="mean")
    std_coef: float = key(COEFFICIENT, neutral=1.0)
    function: str | None = key(neutral=None, content="function")
    options: dict[str, Any] | None = key(neutral=None)
    url: str | None = key(neutral=None)
    retries: int = key(FROM_ZERO, effect="name", neutral=3)
    timeout_s: float = key(above_zero(1e6), effect="name", neutral=60.0, unit="seconds")


@dataclass
class Rewards:
    """The rewards by name. `model` is the one that is composed by default; a configuration may drop it and add others
    (rlhf/config/sections.py)."""

    model: RewardTerm = key()
