"""One override at a time: parsed, and refused where Hydra would not name it or would take it for something else."""

from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException

from rlhf.config.errors import ConfigError
from rlhf.config.hydra_errors import unknown_option

# The groups outside conf/: they are joined to a configuration, not chosen in it.
PRESETS = ("experiments", "sweeps")

Options = Callable[[str], list[str]]
PARSER = OverridesParser.create()


def parse(word: str) -> Override:
    """Parse an override. Raises ConfigError with the word and what is wrong with it."""
    key, equals, value = word.partition("=")
    if not word.strip():
        raise ConfigError("override", repr(word), "it is empty", "leave it out")
    if not equals and not word.startswith("~"):
        raise ConfigError("override", word, "it has no value", f"write {word}=VALUE")
    if key != key.strip() or " " in key.strip():
        raise ConfigError("override", word, "a key has no blanks", f"write {key.replace(' ', '')}={value.strip()}")
    try:
        return PARSER.parse_overrides([word])[0]
    except (HydraException, RecursionError, ValueError) as error:  # ValueError: thousands of digits
        raise parse_problem(word, error) from error


@lru_cache(maxsize=16)
def parse_command(words: tuple[str, ...]) -> list[tuple[str, Override]] | None:
    """Return the overrides among the words of a command line, with what was typed; None where one of them cannot be
    parsed. All points of a sweep ask it of one command, whose words list the values of all of them."""
    typed = [word for word in words if not word.startswith("-")]
    try:
        return list(zip(typed, PARSER.parse_overrides(typed), strict=True))
    except HydraException:
        return None


def parse_problem(word: str, error: Exception) -> ConfigError:
    """Return what Hydra's grammar says of a word, without the grammar."""
    lines = [line for line in str(error).splitlines() if line.strip() and "See https" not in line]
    problem = lines[1] if len(lines) > 1 and "^" not in lines[1] else lines[0]
    if isinstance(error, RecursionError):
        problem = "it is nested too deeply"
    elif isinstance(error, ValueError):
        problem = "a number in it has too many digits"
    elif "LexerNoViableAlt" in problem:
        problem = "a character in it cannot be read"
    problem = problem.partition(" expecting {")[0].replace("<EOF>", "its end").rstrip(".")
    fix = "write key=value, and quote a value that has blanks or any of ,=()[]{}: 'key=\"a, b\"'"
    return ConfigError("override", word, problem, fix)


def expand_ranges(override: Override) -> Override:
    """Let a range count in decimals, as it is written: 0.1, 0.2, 0.3 and not 0.30000000000000004."""
    value = override.value()
    if isinstance(value, RangeSweep) and any(isinstance(bound, float) for bound in (value.start, value.stop, value.step)):
        value.start, value.stop, value.step = (  # type: ignore[assignment]  # Hydra makes decimals of them anyway
            Decimal(f"{bound:.15g}") for bound in (value.start, value.stop, value.step)
        )
    return override


def typed_value(override: Override) -> str:
    """Return the value of an override as it was typed."""
    return str(override.input_line).partition("=")[2]


def check_groups(overrides: list[Override], options: Options, files: Options) -> None:
    """Refuse choices of options that Hydra would refuse without naming the word, or take for something else. `options` of a
    group are its `files` and the groups in it."""
    for override in overrides:
        key, value, typed = override.key_or_group, override.value(), typed_value(override)
        name = override.get_key_element().lstrip("+")
        if override.is_hydra_override() and override.is_sweep_override():
            raise ConfigError(name, typed, "Hydra's own keys cannot be swept", "give one value")
        if override.is_hydra_override() or override.is_delete() or isinstance(value, dict) or not options(key):
            continue
        if override.is_force_add():
            raise ConfigError(
                f"++{name}", typed, "an option is chosen, not added", f"write {write_override(key, name)}={typed}"
            )
        if key in PRESETS and not override.is_add():
            raise ConfigError(key, typed, "a preset is joined to the configuration", f"write +{key}={typed}")
        if override.is_add() and key not in PRESETS:
            raise ConfigError(f"+{name}", typed, f"{name} has an option already", f"write {name}={typed}")
        if override.is_sweep_override():
            continue
        if isinstance(value, list) and key not in PRESETS:
            fix = f"give {has_several(key, name, typed)}, or choose one"
            raise ConfigError(name, typed, "only the last of several options would count", fix)
        if not isinstance(value, str | list):
            raise unknown_option(name, typed, files(key))
        if isinstance(value, list) and (unknown := [option for option in value if option not in files(key)]):
            raise unknown_option(name, str(unknown[0]), files(key))


def write_override(key: str, name: str) -> str:
    """Write how an option of a group is chosen: presets with a +."""
    return f"+{key}" if key in PRESETS else name


def has_several(key: str, name: str, typed: str) -> str:
    """Return what to type for several options of a group at once."""
    options = typed.strip("[]")
    return f"stages=[{options}] to run both in one" if key == "stage" else f"-m {name}={options} to run each"


def fixed_overrides(overrides: list[Override], preset: bool, options: Options) -> ConfigError | None:
    """Return what is wrong with several values, or a preset of them, in a command that is no sweep."""
    for override in overrides:
        name, typed = override.get_key_element(), typed_value(override)
        if not override.is_sweep_override():
            continue
        if not override.is_discrete_sweep():
            return ConfigError(name, typed, "an interval is searched by a sweep", f"search with -m: -m '{name}={typed}'")
        group = options(override.key_or_group)
        fix = "sweep with -m"
        if group and override.key_or_group == "stage":
            fix += f", or give {has_several('stage', name, typed)}"
        elif not group and "(" not in typed:
            fix += f", or give a list, {name}=[{typed}]"
        return ConfigError(name, typed, "several values", fix)
    if preset:
        found = next((o for o in overrides if o.key_or_group == "sweeps"), None)
        word = "hydra.sweeper.params" if found is None else f"+sweeps={typed_value(found)}"
        key, _, value = word.partition("=")
        return ConfigError(key, value or "...", "it describes a sweep", f"type `python -m rlhf -m {word}`")
    return None


def without_values(overrides: list[Override], options: Options) -> ConfigError | None:
    """Return what is wrong with a list, range or glob that stands for no value at all: its sweep would have no points."""
    for override in overrides:
        if not override.is_discrete_sweep() or any(True for _ in override.sweep_iterator()):
            continue
        name, typed, group = override.get_key_element(), typed_value(override), options(override.key_or_group)
        fix = f"choose one of {', '.join(group)}" if group else "give at least one value, as key=1,2 or range(0,3)"
        return ConfigError(name, typed, "it stands for no value, so the sweep has no points", fix)
    return None
