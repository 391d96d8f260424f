"""Mixtures: from the names of data sets, as they are typed, to the keys of each."""

import copy
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Data, Member

# The keys of `data` that are the mixture's alone, and those that its members have of their own.
SHARED = {field.name for field in fields(Data)} - {field.name for field in fields(Member)}
OWN = [field.name for field in fields(Member)]
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
EXAMPLE = "'data.mix={hh-rlhf: 0.7, ultrafeedback: 0.3}'"

Options = Mapping[str, Callable[[], dict[str, Any]]]


def expand_mixture(composed: DictConfig, options: Options) -> list[ConfigError]:
    """Replace the sets that `data.mix` names by their keys: those of the option of `data` that each is, and what is given
    beside its name. Returns what is wrong; a set that is wrong is left out.

    Args:
        composed: What Hydra composes.
        options: The options of `data`, with what loads the values of each.
    """
    try:
        given = composed["data"]["mix"]
        if OmegaConf.is_config(given):
            given = OmegaConf.to_container(given, resolve=True)
        form = composed.data.get("format")
    except (OmegaConfBaseException, KeyError, TypeError):
        return []  # to_config says what is wrong
    if given is None:
        return []
    problems: list[ConfigError] = []
    members: dict[str, Any] = {}
    for name, value in list_members(given, problems):
        try:
            members[name] = expand_member(name, value, options, form)
        except ConfigError as error:
            problems += error.problems
    with read_write(composed), open_dict(composed):
        composed.data.mix = members
    return problems


def list_members(given: Any, problems: list[ConfigError]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the members of a mixture by name, each with the keys that are given: a list of names, or a mapping of names to
    weights or keys."""
    if isinstance(given, list):
        twice = [name for place, name in enumerate(given) if name in given[:place]]
        problems += [ConfigError("data.mix", name, "the set is named twice", "name each once") for name in twice[:1]]
        given = {name: None for name in given if isinstance(name, str | int)} or given
    if not isinstance(given, dict) or not given:
        fix = f"give some by their names, as {EXAMPLE}, or data.mix=[hh-rlhf,ultrafeedback]"
        problems.append(ConfigError("data.mix", given, "it names no data sets", fix))
        return
    for name, value in given.items():
        if not NAME.fullmatch(str(name)):
            fix = "take letters, digits, _ and - for a name"
            problems.append(ConfigError("data.mix", name, "a set cannot have this name", fix))
        elif isinstance(value, dict):
            yield str(name), value
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield str(name), {"weight": value}
        else:
            problem = "it is neither a weight nor a mapping of keys"
            fix = f"give its share, as 0.5, or {{records: 10000}}, or {{files: {{train: {value}}}}}"
            problems.append(ConfigError(f"data.mix.{name}", value, problem, fix))


def expand_member(name: str, given: dict[str, Any], options: Options, form: Any) -> dict[str, Any]:
    """Return all keys of a member. Raises ConfigError."""
    group, given = f"data.mix.{name}", dict(given)
    option = given.pop("option", None) or find_option(name, given, options)
    if option not in options:
        near = difflib.get_close_matches(str(option), options, n=1, cutoff=0.4)
        fix = f"did you mean {near[0]}? " if near else ""
        fix += "Files of your own are named as {files: {train: a.jsonl}}"
        raise ConfigError(group, option, "there is no such data set", fix)
    values = options[option]()
    if values["source"] not in ("files", "hub"):
        problem = "it is made by code" if values["source"] == "demo" else "it is a mixture itself"
        raise ConfigError(group, option, f"{problem}, which no mixture holds", "name sets of files or of the hub")
    if values.get("format") != form:
        fix = f"set data.format={values.get('format')}, or mix it with others of its format"
        raise ConfigError(f"{group}.format", values.get("format"), f"the mixture has data.format={form}", fix)
    if alone := [key for key in given if key in SHARED]:
        problem = "a mixture has one for all its sets"
        raise ConfigError(f"{group}.{alone[0]}", given[alone[0]], problem, f"set data.{alone[0]}")
    base = {key: copy.deepcopy(values.get(key)) for key in OWN}
    if "files" in given and "source" not in given and isinstance(given["files"], dict):
        base["source"] = "files" if given["files"].get("train") is not None else base["source"]
    return merge(base, given)


def find_option(name: str, given: Mapping[str, Any], options: Options) -> str:
    """Return the option of `data` that a member is: the one of its name, or that of files or of the hub where it names
    some."""
    if name in options:
        return name
    named = {group: given[group] for group in ("files", "hub") if isinstance(given.get(group), dict)}
    if named.get("files", {}).get("train") is not None:
        return "files"
    return "hub" if named.get("hub", {}).get("name") is not None else name


def merge(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with others set in them, group by group."""
    merged = dict(base)
    for key, value in given.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
