"""Estimators of advantages: which there are, and what each needs beside rewards. Nothing here imports torch.

`ppo.estimator` names one of ESTIMATORS, or somebody else's function as "module:function", with a frozenset `needs` as its
attribute where it needs anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from rlhf.catalog.named import advise, load_named
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config

# `values`: a critic. `group`: several responses to a prompt. `greedy`: the score of the likeliest response, which is
# sampled too. `reference`: log-ratios to the reference, wherever the KL penalty is.
NEEDS = frozenset({"values", "group", "greedy", "reference"})


@dataclass(frozen=True)
class EstimatorKind:
    """An estimator of this package.

    Attributes:
        function: Where it lies, as "module:function".
        needs: What it needs, of NEEDS.
        is_even: Whether all tokens of a response have the same advantage, as long as no KL penalty is in the reward of
            each.
    """

    function: str
    needs: frozenset[str] = frozenset()
    is_even: bool = False


PACKAGE = "rlhf.algo.estimators"
ESTIMATORS = {
    "gae": EstimatorKind(f"{PACKAGE}.gae:estimate_gae", frozenset({"values"})),
    "rloo": EstimatorKind(f"{PACKAGE}.rloo:estimate_rloo", frozenset({"group"}), is_even=True),
    "grpo": EstimatorKind(f"{PACKAGE}.grpo:estimate_grpo", frozenset({"group"}), is_even=True),
    "reinforce": EstimatorKind(f"{PACKAGE}.reinforce:estimate_reinforce"),
    "remax": EstimatorKind(f"{PACKAGE}.remax:estimate_remax", frozenset({"greedy"})),
    "raft": EstimatorKind(f"{PACKAGE}.raft:estimate_raft", frozenset({"group"}), is_even=True),
    "online_dpo": EstimatorKind(
        f"{PACKAGE}.online_dpo:estimate_online_dpo", frozenset({"group", "reference"}), is_even=True
    ),
}


def load_estimator(name: str) -> Any:
    """Import the function that `ppo.estimator` names. Raises ConfigError where there is none."""
    known, form = {kind: entry.function for kind, entry in ESTIMATORS.items()}, "a function as module:function"
    estimate = load_named("ppo.estimator", name, known, form)
    if not callable(estimate):
        raise ConfigError("ppo.estimator", name, "it is no function", advise(known, form))
    return estimate


@cache
def needs_of(name: str) -> frozenset[str]:
    """Return what an estimator needs, of NEEDS. This package's are not imported; a name that is none, which is refused
    where names are checked, counts as the default. Raises ConfigError for a need that there is not."""
    if ":" not in name:
        return ESTIMATORS.get(name, ESTIMATORS["gae"]).needs
    stated: Iterable[str] = getattr(load_estimator(name), "needs", ())
    needs = frozenset(stated)
    if unknown := sorted(needs - NEEDS):
        problem = f"it needs {', '.join(unknown)}, which is not known"
        raise ConfigError("ppo.estimator", name, problem, f"name some of {', '.join(sorted(NEEDS))} in `needs`")
    return needs


def has_critic(config: Config) -> bool:
    """Whether a critic is trained."""
    return "values" in needs_of(config.ppo.estimator)


def has_reference(config: Config) -> bool:
    """Whether log-probabilities of the reference are part of training."""
    return config.ppo.kl_placement != "none" or "reference" in needs_of(config.ppo.estimator)
