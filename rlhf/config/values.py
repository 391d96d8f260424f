"""Values compared with the schema: types, ranges, choices, and text. OmegaConf alone would take any number for true, text
for a number, and a list for text."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from rlhf.catalog.stage import is_stage, stage_kinds
from rlhf.config.errors import ConfigError
from rlhf.config.keys import KEYS, Key, get_key, types_of, walk_keys, without_none
from rlhf.config.metadata import AUTO, SHARE, Range
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
    """Find what is wrong with the value of one key of type `kind`, each item of a list by its index."""
    expected = without_none(kind)
    origin = get_origin(expected) or expected
    if kind is Any or (value is None and expected is not kind):
        return
    if origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from value_problems(f"{key}[{index}]", item, get_args(expected)[0])
    elif origin is dict and isinstance(value, dict) and is_dataclass(member := get_args(expected)[-1]):
        for name, item in value.items():
            yield from type_problems(item, member, f"{key}.{name}.")
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
        elif isinstance(value, dict) and (member := member_type(hints[name])) is not None:
            for inner, item in value.items():
                yield from unknown_keys(item, member, f"{prefix}{name}.{inner}.")


def member_type(kind: Any) -> Any:
    """Return the dataclass of the members of a mapping; None for any other type."""
    expected = without_none(kind)
    found = get_args(expected)[-1] if get_origin(expected) is dict else None
    return found if is_dataclass(found) else None


def check_values(values: Mapping[str, Any], keys: Mapping[str, Key] = KEYS) -> Iterator[tuple[ConfigError, Any]]:
    """Find the values, by dotted key, that their key may not hold whatever the others are; each with a value that it may
    hold instead. `keys` are those of the schema."""
    for key, value in values.items():
        known = keys[key]
        if key == "stages":
            outside = [name for name in value or () if "." in name and is_stage(name)]
            yield from check_choice(key, value, (*stage_kinds(), *outside), known)
        elif key in ("rollout.engine", "ppo.estimator") and ":" in value:  # somebody else's, which is imported later
            continue
        elif known.choices:  # the planner chooses for the keys of this package alone
            yield from check_choice(key, value, tuple(o for o in known.choices if o != AUTO or key in KEYS), known)
        elif (member := member_type(known.type)) is not None:
            for name, group in (value or {}).items():
                inner = {f"{key}.{name}.{own}": entry for own, entry in walk_keys(member).items()}
                within = {path: get_key(group, path.removeprefix(f"{key}.{name}.")) for path in inner}
                yield from check_values(within, inner)
        elif known.range is not None and isinstance(value, list) and key.endswith(".split"):
            yield from check_shares(key, value, known.range)
        elif known.content == "records":
            yield from check_paths(key, value, known)
        elif key.endswith(".betas"):
            yield from check_betas(key, value)
        elif known.auto:
            yield from check_count_or_auto(key, value, known)
        elif value is not None and known.range is not None:
            yield from check_number(key, value, known.range)
        elif value is not None and without_none(known.type) is str:
            yield from check_text(key, value, known)


def check_choice(key: str, value: Any, options: tuple[Any, ...], known: Key) -> Iterator[tuple[ConfigError, Any]]:
    """Find words that are no choice of their key, which may hold one, or a list of them."""
    several = get_origin(without_none(known.type)) is list and isinstance(value, list)
    chosen = value if several else [] if value is None and known.optional else [value]
    allowed = [word for word in chosen if is_choice(word, options)] or list(options[:1])
    for word in chosen:
        if not is_choice(word, options):
            named = [str(option).lower() if isinstance(option, bool) else str(option) for option in options]
            fix = f"choose one of {', '.join(named)}"
            yield ConfigError(key, word, "there is no such choice", fix), allowed if several else allowed[0]


def is_choice(word: Any, options: tuple[Any, ...]) -> bool:
    """Tell whether a word is one of the options and of its type: 1 is not true."""
    return any(type(word) is type(option) and word == option for option in options)


def check_count_or_auto(key: str, value: Any, known: Key) -> Iterator[tuple[ConfigError, Any]]:
    """Find what is neither `auto` nor a number in the key's range; null passes where it stands for all."""
    numbers = known.range
    assert numbers is not None  # keys without one have choices
    if value == AUTO or (value is None and known.optional):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        yield ConfigError(key, value, "it is neither auto nor a whole number", f"give auto or a number {numbers}"), 1
    else:
        yield from check_number(key, value, numbers)


def check_number(key: str, value: float, numbers: Range) -> Iterator[tuple[ConfigError, Any]]:
    """Find a number that is out of its range, as infinity and NaN are of every one."""
    if value not in numbers:
        nearest = numbers.nearest(value)
        repaired = int(nearest) if isinstance(value, int) else float(nearest)
        yield ConfigError(key, value, "out of range", f"give a number {numbers}"), repaired


def check_text(key: str, text: str, known: Key) -> Iterator[tuple[ConfigError, Any]]:
    """Find text that is empty or cannot be written as UTF-8."""
    repaired = "{prompt}" if without_none(known.type) is known.type else None
    if not text.strip():
        yield ConfigError(key, repr(text), "it is empty", "give some text, or leave the key out"), repaired
    elif "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        yield ConfigError(key, text, "it holds a NUL, or bytes that are not UTF-8", "leave them out"), repaired


def check_shares(key: str, shares: list[float], numbers: Range) -> Iterator[tuple[ConfigError, Any]]:
    """Find shares of stages that are not three numbers, of which one is above 0."""
    if len(shares) != 3 or sum(shares) <= 0 or not all(share in numbers for share in shares):
        problem = "it takes the shares of fine-tuning, of reward modelling and of policies, not all 0"
        yield ConfigError(key, shares, problem, "give three numbers, as [2,4,4]"), [2.0, 4.0, 4.0]


def check_paths(key: str, value: Any, known: Key) -> Iterator[tuple[ConfigError, Any]]:
    """Find what is no path of records, nor a list of them where the key may hold several."""
    several = known.type is Any and isinstance(value, list)
    paths = value if several else [] if value is None else [value]
    if several and not paths:
        yield ConfigError(key, value, "it names no file", "give some, as [a.jsonl,b.jsonl], or leave the key out"), None
    for path in paths:
        if isinstance(path, str):
            yield from ((problem, None) for problem, _ in check_text(key, path, known))
        else:
            yield ConfigError(key, path, "it is no path", "give a path, in quotes, or a list of them, as [a,b]"), None


def check_betas(key: str, betas: list[float]) -> Iterator[tuple[ConfigError, Any]]:
    """Find moments of AdamW that are not two numbers in [0, 1)."""
    if len(betas) != 2 or not all(beta in SHARE for beta in betas):
        yield ConfigError(key, betas, "AdamW takes two numbers in [0, 1)", "try [0.9,0.95]"), [0.9, 0.95]
