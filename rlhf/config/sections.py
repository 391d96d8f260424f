"""The schema of a configuration that asks for stages of other packages: `Config` with a group of keys for each of them."""

from collections.abc import Iterable
from dataclasses import make_dataclass
from functools import cache

from rlhf.catalog.stage import is_stage, kind_of
from rlhf.config.keys import types_of
from rlhf.config.metadata import key
from rlhf.config.schema import Config


def config_type(stages: object) -> type[Config]:
    """Return the schema of a configuration whose `stages` are these; what is no list of names asks for none."""
    names = [name for name in stages if isinstance(name, str)] if isinstance(stages, Iterable) else []
    return extended_type(tuple(dict.fromkeys(name for name in names if "." in name and is_stage(name))))


@cache
def extended_type(stages: tuple[str, ...]) -> type[Config]:
    """Return the schema with the groups of these stages that `Config` does not have."""
    known, added = types_of(Config), dict[str, type]()
    for kind in map(kind_of, stages):
        if kind.schema is not None and kind.section is not None and kind.section not in known:
            added[kind.section] = kind.schema
    fields = [(name, schema, key(effect="result")) for name, schema in added.items()]
    return make_dataclass("Config", fields, bases=(Config,)) if fields else Config
