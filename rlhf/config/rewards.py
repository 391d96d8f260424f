"""The rewards that a configuration names: their keys completed, and which models and functions they are."""

import keyword
from dataclasses import fields
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, RewardTerm

# What a key of a reward has that the configuration leaves out.
DEFAULTS = {field.name: field.metadata["key"].neutral for field in fields(RewardTerm)}

# Added to the seed for each further member of an ensemble: no two experiments have seeds so far apart.
MEMBER_STRIDE = 1_000_000_007


def complete_rewards(values: dict[str, Any]) -> list[ConfigError]:
    """Fill in the keys that the rewards of composed values leave out, but for `kind`. Returns what is wrong with their
    names; rewards with such names are taken out."""
    rewards = values.setdefault("rewards", {})
    if not isinstance(rewards, dict):
        values["rewards"] = {}
        return [ConfigError("rewards", rewards, "it is a mapping of names", "add one as rewards.NAME.kind=function")]
    problems = []
    for name in list(rewards):
        if not str(name).isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            fix = "write it with letters, digits and _, as rewards.my_reward.kind=function"
            problems.append(ConfigError(f"rewards.{name}", "...", "this cannot be the name of a reward", fix))
            del rewards[name]
        elif isinstance(rewards[name], dict):
            rewards[name] = {key: value for key, value in DEFAULTS.items() if key != "kind"} | rewards[name]
    return problems


def reward_terms(config: Config) -> dict[str, RewardTerm]:
    """Return the rewards of a configuration by name, in an order that does not depend on how they were typed."""
    return {name: getattr(config.rewards, name) for name in sorted(field.name for field in fields(config.rewards))}


def trained_terms(config: Config) -> dict[str, RewardTerm]:
    """Return the rewards that a policy is trained on: all but the gold one."""
    return {name: term for name, term in reward_terms(config).items() if name != config.gold}


def stage_reward(config: Config) -> str | None:
    """Return the name of the reward that is the reward stage's model, or the one of `ppo.reward`; None where there is
    none."""
    return next((name for name, term in trained_terms(config).items() if is_stage_model(term)), None)


def is_stage_model(term: RewardTerm) -> bool:
    """Whether a reward is a model of the reward stage, or an ensemble of such models."""
    return term.kind == "ensemble" or (term.kind == "model" and term.path is None)


def name_models(config: Config) -> dict[str, list[str]]:
    """Return the names of the models that each reward reads, as the policy's stage knows them among its inputs: `reward` is
    the reward stage's own, which is the first member of every ensemble too."""
    named = {}
    for name, term in reward_terms(config).items():
        if term.kind == "ensemble":
            named[name] = ["reward", *(f"reward {name} {member}" for member in range(1, term.members))]
        elif term.kind == "model":
            named[name] = ["reward" if term.path is None else f"reward {name}"]
    return named


def reward_seed(config: Config) -> int:
    """Return the seed of a reward model's head, of the order of its data and of its dropout: for the first member of an
    ensemble the experiment's own, which the data has in any case."""
    return config.seed + MEMBER_STRIDE * config.reward.member


def count_reward_models(config: Config) -> int:
    """Count the reward models that score rollouts and evaluations."""
    return len({model for models in name_models(config).values() for model in models})


def gold_term(config: Config) -> RewardTerm | None:
    """Return the reward that `gold` names: one of `rewards`, or the function of that name or path. None where it names
    none."""
    if config.gold is None:
        return None
    known = reward_terms(config).get(config.gold)
    return known or RewardTerm(**(DEFAULTS | {"kind": "function", "function": config.gold}))


def has_gold(config: Config) -> bool:
    """Whether a gold reward judges evaluations: the one that `gold` names, or the demo's own."""
    return config.gold is not None or config.data.source == "demo"
