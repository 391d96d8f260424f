"""The keys of the schema by their dotted names: types and metadata in one walk, and values of a configuration by key."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, reduce
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from rlhf.config.metadata import AUTO, Effect, Metadata
from rlhf.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Key(Metadata):
    """A key or a group of keys: its type and its metadata, completed by those of the groups that hold it.

    Attributes:
        type: The type of its value, a dataclass for a group.
        choices: With `auto` where that is one.
        effect: None where neither the key nor a group that holds it says one.
        switches: The keys that switch it on. Where one of them has its neutral value, this key does nothing.
        optional: Whether it may be null.
    """

    type: Any
    switches: tuple[str, ...]

    @property
    def is_group(self) -> bool:
        """Whether it holds keys of its own."""
        return is_dataclass(self.type)


@cache
def types_of(schema: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with their types."""
    return get_type_hints(schema)


def walk_schema(schema: Any, prefix: str = "", group: Key | None = None) -> Iterator[tuple[str, Key]]:
    """Yield every group and every key of a schema by its dotted name, in order of declaration."""
    hints = types_of(schema)
    for field in fields(schema):
        own: Metadata = field.metadata.get("key", Metadata())
        completed = {
            "choices": (*own.choices, AUTO) if own.auto and own.choices else own.choices,
            "effect": own.effect or (group.effect if group else None),
            "once": own.once or (group is not None and group.once),
            "optional": own.optional or NoneType in get_args(hints[field.name]),
            "switches": (*(group.switches if group else ()), *((prefix + own.only_with,) if own.only_with else ())),
        }
        found = Key(type=hints[field.name], **(vars(own) | completed))
        yield prefix + field.name, found
        if found.is_group:
            yield from walk_schema(found.type, f"{prefix}{field.name}.", found)


@cache
def walk_keys(schema: Any) -> dict[str, Key]:
    """Return the keys of a schema, without groups, by their dotted names."""
    return {name: key for name, key in walk_schema(schema) if not key.is_group}


def keys_of(schema: Any) -> dict[str, Key]:
    """Return the keys of a schema, without groups, by their dotted names: of `Config`, or of one that has the keys of
    another package's stages too (rlhf/config/sections.py)."""
    return walk_keys(schema)


# Every key and every group of keys, and the keys alone, by their dotted names.
ENTRIES: dict[str, Key] = dict(walk_schema(Config))
KEYS: dict[str, Key] = keys_of(Config)
# The keys that may be `auto`.
AUTO_KEYS = tuple(name for name, key in KEYS.items() if key.auto)


def without_none(kind: Any) -> Any:
    """Return the type that a key takes besides null."""
    return next(option for option in get_args(kind) if option is not NoneType) if isinstance(kind, UnionType) else kind


def leaf_keys() -> list[str]:
    """Return every dotted key of the schema, in order of declaration."""
    return list(KEYS)


def matches_prefix(key: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether one of the prefixes is `key` or a group that holds it."""
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


@cache
def effects_of(name: str) -> frozenset[Effect | None]:
    """Return the effects of a key, or of all keys of a group. A key that there is not has those of the group that its name
    begins with."""
    if name in KEYS:
        return frozenset({KEYS[name].effect})
    if name in ENTRIES:
        return frozenset(key.effect for inner, key in KEYS.items() if inner.startswith(name + "."))
    group = name.rpartition(".")[0]
    return effects_of(group) if group else frozenset()


def has_no_effect_but(name: str, *effects: Effect) -> bool:
    """Tell whether a key, or every key of a group, has one of these effects; a name that is neither has none."""
    found = effects_of(name)
    return bool(found) and found <= set(effects)


def is_neutral(config: Any, key: str) -> bool:
    """Tell whether a key leaves a stage what it was before the key existed: it has its neutral value, or is not decided
    yet, or a key that switches it on has its own."""
    known = keys_of(type(config))
    names = (key, *known[key].switches)
    return any(known[name].neutral is not ... and get_key(config, name) in (known[name].neutral, AUTO) for name in names)


def get_key(config: Any, key: str) -> Any:
    """Return the value at a dotted key, of a member of a mixture too."""
    return reduce(get_inner, key.split("."), config)


def get_inner(value: Any, name: str) -> Any:
    """Return a key's value within a group or a mapping."""
    return value[name] if isinstance(value, dict) else getattr(value, name)


def set_key(config: Any, key: str, value: Any) -> None:
    """Set the value at a dotted key."""
    group, _, name = key.rpartition(".")
    setattr(get_key(config, group) if group else config, name, value)
