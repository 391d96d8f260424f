"""The rewards that a configuration names: their keys completed, and which models and functions they are."""

import keyword
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, RewardTerm

# What a key of a reward has that the configuration leaves out.
DEFAULTS = {field.name: field.metadata["key"].neutral for field in fields(RewardTerm)}


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
    """Whether a reward is a model that no path of its own names."""
    return term.kind == "model" and term.path is None


def given_models(config: Config) -> Mapping[str, str]:
    """Return the paths of the reward models that are given by a path of their own, by the name of the reward."""
    return {name: str(t.path) for name, t in reward_terms(config).items() if t.kind == "model" and t.path is not None}


def count_reward_models(config: Config) -> int:
    """Count the reward models that score rollouts and evaluations."""
    return sum(term.kind == "model" for term in reward_terms(config).values())


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
