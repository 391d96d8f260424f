"""Composed values compared with the types of the schema. OmegaConf alone would take any number for true, text for a number,
and a list for text."""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from rlhf.config.errors import ConfigError
from rlhf.config.keys import types_of, without_none
from rlhf.config.schema import Config

EXPECTED: dict[Any, str] = {
    int: "give a whole number",
    float: "give a number",
    bool: "give true or false",
    str: "give text",
    list: "give a list, as [a,b]",
    dict: "give a mapping of names to numbers or text, as {a: 1}",
}


def type_problems(values: dict[str, Any], schema: Any = Config, prefix: str = "") -> Iterator[ConfigError]:
    """Find every key that is missing, and every value whose type is not that of the schema."""
    hints = types_of(schema)
    for field in fields(schema):
        kind, key = hints[field.name], prefix + field.name
        value = values.get(field.name, "???")
        if value == "???":
            yield ConfigError(key, value, "it has no default", f"give it: {key}=...")
        elif not is_dataclass(kind):
            yield from value_problems(key, value, kind)
        elif isinstance(value, dict):
            yield from type_problems(value, kind, key + ".")
        else:
            yield ConfigError(key, value, "it is a group of keys", f"set one of them, as {key}.{fields(kind)[0].name}=...")


def value_problems(key: str, value: Any, kind: Any) -> Iterator[ConfigError]:
    """Find what is wrong with the value of one key of type `kind`, each item of a list by its place."""
    expected = without_none(kind)
    origin = get_origin(expected) or expected
    if kind is Any or (value is None and expected is not kind):
        return
    if origin is list and isinstance(value, list):
        for place, item in enumerate(value):
            yield from value_problems(f"{key}[{place}]", item, get_args(expected)[0])
    elif origin is dict and isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(item, str | int | float | NoneType):
                yield ConfigError(f"{key}.{name}", item, "wrong type", "give a number or text")
    elif origin in (int, float, bool, str):
        yield from scalar_problems(key, value, origin)
    else:
        yield ConfigError(key, value, "wrong type", EXPECTED[origin])


def scalar_problems(key: str, value: Any, kind: type) -> Iterator[ConfigError]:
    """Find what is wrong with a value that should be one number, text, or true or false."""
    accepted = {int: int, float: int | float, bool: bool, str: str | int}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        quoted = kind is str and isinstance(value, bool | float)  # Hydra would write 1e5 as 100000.0
        yield ConfigError(key, value, "wrong type", "quote it, as \"'...'\"" if quoted else EXPECTED[kind])
    elif kind is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        yield ConfigError(key, value, "out of range", "give a number of fewer digits")


def unknown_keys(values: dict[str, Any], schema: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Find the dotted keys, with their values, that the schema does not have."""
    hints = types_of(schema)
    for name, value in values.items():
        if name not in hints:
            yield f"{prefix}{name}", value
        elif is_dataclass(hints[name]) and isinstance(value, dict):
            yield from unknown_keys(value, hints[name], f"{prefix}{name}.")
