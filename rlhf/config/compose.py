"""From what the user typed to a typed configuration. Hydra composes; this makes it strict.

Hydra alone accepts any `+key=value`; merging the composed values into the schema does not.
"""

import copy
import re
import sys
from collections.abc import Iterable
from dataclasses import is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from rlhf.config.directories import draw_unique_word, make_safe_name, name_sweep
from rlhf.config.errors import ConfigError, first_line, raise_problems
from rlhf.config.hydra_errors import unknown_key
from rlhf.config.keys import keys_of, types_of
from rlhf.config.overrides import parse_command
from rlhf.config.recipes import expand_model, register_recipes
from rlhf.config.rewards import complete_rewards
from rlhf.config.schema import Config
from rlhf.config.sections import config_type
from rlhf.config.templates import read_line_breaks
from rlhf.config.values import check_values, type_problems, unknown_keys

# Groups that were converted, by their type and values.
CONVERTED: dict[tuple[type, str], Any] = {}
MOST_CONVERTED = 10_000


def config_root() -> Path:
    """Return the directory that holds conf/, experiments/ and sweeps/: the repository, or the package in an installed
    wheel."""
    package = Path(__file__).resolve().parents[1]
    return package.parent if (package.parent / "conf" / "config.yaml").exists() else package


def register() -> None:
    """Tell Hydra where the presets are, which options follow the model, and that every model can be a reward model too."""
    root = config_root()
    register_recipes((root / "conf" / "model",))
    OmegaConf.register_new_resolver("rlhf_choose", lambda name, values, other: values.get(name, other), replace=True)
    OmegaConf.register_new_resolver("rlhf_share", share_equally, replace=True)
    OmegaConf.register_new_resolver("rlhf_root", lambda: str(root), replace=True)
    OmegaConf.register_new_resolver("rlhf_unique", draw_unique_word, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("rlhf_sweep", lambda name: name_sweep(str(name), sys.argv[1:]), replace=True)
    OmegaConf.register_new_resolver("rlhf_point", lambda overrides: point_name(list(overrides), sys.argv[1:]), replace=True)
    for path in (root / "conf" / "model").glob("*.yaml"):
        node = {"defaults": [{"/model@_here_": path.stem}, "_self_"]}
        ConfigStore.instance().store(group="reward_model", name=path.stem, node=node, provider="conf/model")


def share_equally(number: float, parts: Any) -> float:
    """Return a number divided by a count; the number itself beside a count that is refused later."""
    return number / parts if isinstance(parts, int) and parts > 0 else number


def point_name(overrides: list[str], typed_in: list[str]) -> str:
    """Return a directory's name for a point of a sweep: its overrides but for those that were typed with one value for all
    points."""
    fixed = fixed_keys(typed_in)
    swept = [override.lstrip("+") for override in overrides if override.split("=", 1)[0] not in fixed]
    return make_safe_name(",".join(unquote_digits(override) for override in swept)) or "point"


def fixed_keys(typed_in: list[str]) -> set[str]:
    """Return the keys on the command line (with their +) that have one value; Hydra writes values in its own way
    afterwards."""
    parsed = parse_command(tuple(typed_in)) or []
    return {word.split("=", 1)[0] for word, one in parsed if not one.is_sweep_override()}


def rewrite_words(arguments: list[str]) -> list[str]:
    """Command-line arguments as Hydra understands them: options whose names are digits and the braces of hub.push quoted,
    models by hub id or directory as the option they are, or as model=local with a path, and keys of rewards with the ++
    that adds them. Raises ConfigError."""
    quoted = [re.sub(r"^(hub\.push=)([^\"'$]*\{[^\"'$]*)$", r'\1"\2"', argument) for argument in quote_digits(arguments)]
    words = [word for argument in quoted for word in expand_model(argument, config_root() / "conf" / "model")]
    return [f"++{word}" if re.match(r"rewards\.[^.=]+\.[^=]+=", word) else word for word in words]


def quote_digits(arguments: list[str]) -> list[str]:
    """Command-line arguments in which `zero=3` names an option; Hydra would read a number."""
    pattern = re.compile(r"^(\+?zero(?:@[\w.]+)?)=([\w,-]+)$")
    return [
        f"{match[1]}=" + ",".join(f"'{name}'" if name.isdigit() else name for name in match[2].split(","))
        if (match := pattern.match(argument))
        else argument
        for argument in arguments
    ]


def unquote_digits(override: str) -> str:
    """Return an override as it was before `quote_digits`."""
    return re.sub(r"^(zero(?:@[\w.]+)?)='([\w-]+)'$", r"\1=\2", override)


def to_config(composed: DictConfig, found: Iterable[ConfigError] = ()) -> Config:
    """Return the composed values as a `Config`; raises ConfigError for a key or a type that the schema does not have, and
    for what has been found before."""
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(key, "???", "it has no default", f"give it: {key}=...") from error
    except InterpolationResolutionError as error:
        key = str(error.full_key)
        text = OmegaConf.to_container(composed, resolve=False)
        raise ConfigError(key, lookup(text, key), first_line(error), "correct the reference") from error
    read_line_breaks(values)
    misnamed = complete_rewards(values)
    schema = config_type(values.get("stages"), values["rewards"])
    keys = keys_of(schema)
    unknown = [unknown_key(*named) for named in unknown_keys(values, schema)]
    problems = [*found, *misnamed, *unknown, *type_problems(values, schema)]
    if problems:
        sound = [key for key in keys if not any(names(error, key) for error in problems)]
        given = {key: value for key in sound if (value := lookup(values, key)) is not None}
        raise_problems([*problems, *(error for error, _ in check_values(given, keys))])
    return convert_value(values, schema) or cast(Config, to_value(schema, values))


def names(error: ConfigError, key: str) -> bool:
    """Whether an error is about a key, a group that holds it, or an item of it."""
    return re.match(rf"{re.escape(error.key.partition('[')[0])}(\.|$)", key) is not None


def to_value(schema: type, values: dict[str, Any]) -> Any:
    """Return an instance of a dataclass with these values. OmegaConf converts and checks each."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def convert_value(values: dict[str, Any], schema: Any) -> Config | None:
    """Convert the values to a Config of this schema, group by group: a group that was converted before is copied, as the
    points of a sweep have most groups alike and OmegaConf takes 40 ms for all. Returns None if something is wrong:
    converting all at once says what."""
    kinds = types_of(schema)
    groups = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and is_dataclass(kind)}
    if set(values) != set(kinds) or not all(isinstance(values[name], dict) for name in groups):
        return None
    single = make_dataclass("Single", [(name, kind) for name, kind in kinds.items() if name not in groups])
    try:
        parts = {name: convert_group(kind, values[name]) for name, kind in groups.items()}
        rest = to_value(single, {name: value for name, value in values.items() if name not in groups})
    except OmegaConfBaseException:
        return None
    return cast(Config, schema(**parts, **vars(rest)))


def convert_group(kind: type, values: dict[str, Any]) -> Any:
    """Return a group's values as its dataclass, converted once."""
    known = (kind, repr(values))
    if known not in CONVERTED:
        if len(CONVERTED) > MOST_CONVERTED:
            CONVERTED.clear()
        CONVERTED[known] = to_value(kind, values)
    return copy.deepcopy(CONVERTED[known])


def lookup(values: Any, key: str) -> Any:
    """Return the value at a dotted key of nested dicts, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
