"""From what the user typed to a typed configuration. Hydra composes; this makes it strict.

Hydra alone accepts any `+key=value`; merging the composed values into the schema does not.
"""

import difflib
import re
import sys
import zlib
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from rlhf.config.errors import ConfigError, first_line, raise_problems
from rlhf.config.keys import leaf_keys
from rlhf.config.ranges import check_values
from rlhf.config.schema import Config
from rlhf.config.values import type_problems, unknown_keys


def config_root() -> Path:
    """The directory that holds conf/, experiments/ and sweeps/: the repository, or the package in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    return package.parent if (package.parent / "conf" / "config.yaml").exists() else package


def register() -> None:
    """Tell Hydra where the presets are, and that every model can be a reward model too."""
    root = config_root()
    OmegaConf.register_new_resolver("rlhf_root", lambda: str(root), replace=True)
    OmegaConf.register_new_resolver("rlhf_point", lambda overrides: point_name(list(overrides), sys.argv[1:]), replace=True)
    for path in (root / "conf" / "model").glob("*.yaml"):
        node = {"defaults": [{"/model@_here_": path.stem}, "_self_"]}
        ConfigStore.instance().store(group="reward_model", name=path.stem, node=node, provider="conf/model")


def point_name(overrides: list[str], typed_in: list[str]) -> str:
    """A directory's name for a point of a sweep: its overrides but for those that were typed with one value for all points;
    shortened with a checksum where they are long."""
    fixed = fixed_keys(typed_in)
    swept = [override.lstrip("+") for override in overrides if override.split("=", 1)[0] not in fixed]
    name = re.sub(r"[^\w.,=+@:-]", "_", ",".join(swept).replace("'", "")) or "point"
    return name if len(name) <= 100 else f"{name[:90]}-{zlib.crc32(name.encode()):08x}"


def fixed_keys(typed_in: list[str]) -> set[str]:
    """The keys on the command line (with their +) that have one value; Hydra writes values in its own way afterwards."""
    try:
        given = [text for text in typed_in if not text.startswith("-")]
        parsed = OverridesParser.create().parse_overrides(given)
    except HydraException:
        return set()
    return {text.split("=", 1)[0] for text, one in zip(given, parsed, strict=True) if not one.is_sweep_override()}


def composed(*overrides: str) -> Config:
    """The configuration that `python -m rlhf <overrides>` composes, typed but not checked."""
    from hydra import compose, initialize_config_dir

    register()
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        return typed(compose("config", overrides=quoted(list(overrides))))


def quoted(arguments: list[str]) -> list[str]:
    """Command-line arguments in which `zero=3` names an option; Hydra would read a number."""
    pattern = re.compile(r"^(\+?zero(?:@[\w.]+)?)=([\w,-]+)$")
    return [
        f"{match[1]}=" + ",".join(f"'{name}'" if name.isdigit() else name for name in match[2].split(","))
        if (match := pattern.match(argument))
        else argument
        for argument in arguments
    ]


def typed(composed: DictConfig) -> Config:
    """The composed values as a `Config`; raises ConfigError for a key or a type that the schema does not have."""
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(key, "???", "it has no default", f"give it: {key}=...") from error
    except InterpolationResolutionError as error:
        key = str(error.full_key)
        text = OmegaConf.to_container(composed, resolve=False)
        raise ConfigError(key, lookup(text, key), first_line(error), "correct the reference") from error
    problems = [*(unknown_key(*found) for found in unknown_keys(values)), *type_problems(values)]
    if problems:
        sound = [key for key in leaf_keys() if not any(names(error, key) for error in problems)]
        given = {key: value for key in sound if (value := lookup(values, key)) is not None}
        raise_problems([*problems, *(error for error, _ in check_values(given))])
    return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values)))


def names(error: ConfigError, key: str) -> bool:
    """Whether an error is about a key, a group that holds it, or an item of it."""
    return re.match(rf"{re.escape(error.key.partition('[')[0])}(\.|$)", key) is not None


def lookup(values: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts, or None."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def unknown_key(key: str, value: Any = "...") -> ConfigError:
    """An error that names the nearest keys there are."""
    keys = leaf_keys()
    groups = sorted({".".join(k.split(".")[:i]) for k in keys for i in range(1, k.count(".") + 1)})
    near = difflib.get_close_matches(key, [*keys, *groups, "experiments", "sweeps"], n=1, cutoff=0.5)
    if not near:
        leaf = key.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1] for k in keys], n=1, cutoff=0.6)
        near = [k for k in keys if near and k.endswith("." + near[0])][:1]
    fix = f"did you mean {near[0]}?" if near else "`python -m rlhf --cfg job` lists the keys"
    return ConfigError(key, value, "there is no such key", fix)


def from_hydra(error: Exception, overrides: list[str]) -> ConfigError:
    """Hydra's complaint about an override, in one line of ours."""
    text, cause = str(error), error.__cause__ or error
    if isinstance(error, MissingConfigException) and (match := re.search(r"Could not find '([\w@/-]+)/([^/']*)'", text)):
        typed_as = re.compile(rf"\+?({re.escape(match[1])}(?:@[\w.]+)?)='?{re.escape(match[2])}'?$")
        group = next((found[1] for o in overrides if (found := typed_as.match(o))), match[1])
        return unknown_option(group, match[2], re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE))
    if match := re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text):
        key = match[1]
        value = next((o.split("=", 1)[1] for o in overrides if o.lstrip("+~").startswith(key + "=")), "...")
        return unknown_key(key, value)
    problem = ("override", " ".join(overrides), first_line(cause), "see `python -m rlhf --help`")
    if match := re.search(r"Ambiguous value for argument '([^=']+)=(.*?)'", text):
        problem = (match[1], match[2], "several values", f"sweep with -m, or give a list, {match[1]}=[{match[2]}]")
    elif match := re.search(r"Error merging override ([^=\s]+)=(.*)", text):
        problem = (match[1], match[2], first_line(cause), "see `python -m rlhf --cfg job`")
    elif isinstance(error, OverrideParseException):
        problem = ("override", error.override, first_line(error), "write key=value, quoted if it has spaces")
    return ConfigError(*problem)


def unknown_option(group: str, option: str, options: list[str]) -> ConfigError:
    """An error that names a group's options, the nearest one first."""
    near = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(group, option, "there is no such option", f"{hint}choose one of {', '.join(options) or 'none'}")
