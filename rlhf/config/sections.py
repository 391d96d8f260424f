"""The schema of a configuration: `Config` with the rewards that it names, and with a group of keys for each stage of
another package that it asks for."""

from collections.abc import Iterable, Mapping
from dataclasses import make_dataclass
from functools import cache
from typing import Any

from rlhf.catalog.stage import is_stage, kind_of
from rlhf.config.keys import types_of
from rlhf.config.metadata import key
from rlhf.config.schema import Config, RewardTerm


def config_type(stages: object, rewards: object = None) -> type[Config]:
    """Return the schema of a configuration.

    Args:
        stages: Its `stages`. What is no list of names asks for none.
        rewards: Its `rewards`, a mapping by name; None stands for the composed one.
    """
    names = [name for name in stages if isinstance(name, str)] if isinstance(stages, Iterable) else []
    outside = tuple(dict.fromkeys(name for name in names if "." in name and is_stage(name)))
    return extended_type(outside, tuple(sorted(rewards)) if isinstance(rewards, Mapping) else ("model",))


@cache
def extended_type(stages: tuple[str, ...], rewards: tuple[str, ...]) -> type[Config]:
    """Return the schema with these rewards, and with the groups of these stages that `Config` does not have."""
    known, added = types_of(Config), dict[str, type]()
    for kind in map(kind_of, stages):
        if kind.schema is not None and kind.section is not None and kind.section not in known:
            added[kind.section] = kind.schema
    if rewards != ("model",):
        added["rewards"] = make_dataclass("Rewards", [(name, RewardTerm, key()) for name in rewards], bases=())
    groups = [(name, schema, key(effect="result")) for name, schema in added.items()]
    return make_dataclass("Config", groups, bases=(Config,)) if groups else Config


def with_rewards(config: Config, terms: Mapping[str, RewardTerm]) -> Config:
    """Return a configuration with other rewards, which its schema follows."""
    schema: Any = config_type(config.stages, terms)
    changed: Config = schema(**{**vars(config), "rewards": types_of(schema)["rewards"](**terms)})
    return changed
