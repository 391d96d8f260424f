"""The command line taken apart: Hydra's flags on one side, overrides on the other, wherever they stand."""

import argparse
from dataclasses import dataclass
from typing import NoReturn

from rlhf.config.compose import config_root, rewrite_words
from rlhf.config.errors import ConfigError
from rlhf.config.hydra_compat import build_parser, list_flags

COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")


@dataclass(frozen=True)
class Command:
    """A command line. `flags` are Hydra's with their values; `shows` says that Hydra answers it and nothing runs."""

    overrides: list[str]
    flags: list[str]
    multirun: bool
    shows: bool
    config_path: str
    config_name: str
    config_dir: str | None

    @property
    def words(self) -> list[str]:
        """All words, in an order that Hydra's own parser takes."""
        return [*self.flags, *self.overrides]


def command_of(overrides: list[str]) -> Command:
    """Return the command that runs these overrides, without a flag."""
    return Command(rewrite_words(overrides), [], False, False, str(config_root() / "conf"), "config", None)


# Where the flags of a run are listed.
LISTING = "`python -m rlhf --hydra-help` lists the flags"


class Unparsed(Exception):
    """What argparse says of words that it cannot take."""


def read_command(arguments: list[str], listing: str = LISTING) -> Command:
    """Take a command line apart. Raises ConfigError, whose fix is `listing`, for a flag that there is not, or that another
    one rules out."""
    parser = build_parser()
    parser.error = refuse  # type: ignore[method-assign]
    unknown = [word for word in arguments if word.startswith("--") and "=" in word and not known_flag(parser, word)]
    if unknown:
        raise not_a_flag(unknown[0], listing)
    try:
        parsed = parser.parse_intermixed_args(arguments)
    except Unparsed as error:
        raise wrong_flag(str(error), arguments, listing) from error
    given = [f"--{name.replace('_', '-')}" for name in COMMANDS if getattr(parsed, name)]
    if len(given) > 1 and not parsed.help and not parsed.hydra_help:
        raise ConfigError(
            "argument", given[1], f"it cannot be given beside {given[0]}", f"leave out {given[0]} or {given[1]}"
        )
    for flag, given_too in (("--resolve", parsed.resolve), ("--package", parsed.package)):
        if given_too and parsed.cfg is None and not parsed.help:
            value = "" if given_too is True else f" {given_too}"
            raise ConfigError("argument", flag, "it belongs to --cfg", f"write --cfg job {flag}{value}")
    # Hydra would compose the overrides only to show its help, and refuse what a sweep takes.
    overrides = [] if parsed.help or parsed.hydra_help else rewrite_words(parsed.overrides)
    shows = any(
        (parsed.help, parsed.hydra_help, parsed.cfg, parsed.info, parsed.shell_completion, parsed.experimental_rerun)
    )
    return Command(
        overrides, flags_of(arguments, parsed.overrides), parsed.multirun, shows,
        parsed.config_path or str(config_root() / "conf"), parsed.config_name or "config", parsed.config_dir,
    )  # fmt: skip


def refuse(message: str) -> NoReturn:
    """Raise what argparse would print before it leaves."""
    raise Unparsed(message)


def known_flag(parser: argparse.ArgumentParser, word: str) -> bool:
    """Whether a flag, as --cfg=job, is one of Hydra's or the beginning of one."""
    flag = word.split("=", 1)[0]
    return len(flag) > 2 and any(option.startswith(flag) for option in list_flags(parser))


def flags_of(arguments: list[str], overrides: list[str]) -> list[str]:
    """Return the arguments that are no overrides, in their order."""
    flags, left = [], list(overrides)
    for word in arguments:
        if left and word == left[0]:
            left.pop(0)
        elif word != "--":
            flags.append(word)
    return flags


def not_a_flag(word: str, listing: str) -> ConfigError:
    """Return an error for a word that begins as a flag and is none of Hydra's."""
    bare = word.lstrip("-")
    fix = f"write {bare}" if "=" in bare else f"{listing}; keys are set as key=value"
    return ConfigError("argument", word, "there is no such flag", fix)


def wrong_flag(message: str, arguments: list[str], listing: str) -> ConfigError:
    """argparse's complaint as an error that names the word."""
    if message.startswith("unrecognized arguments: "):
        told = message.removeprefix("unrecognized arguments: ")
        return not_a_flag(
            next((word for word in arguments if word.startswith("-") and told.startswith(word)), told), listing
        )
    flag, _, problem = message.removeprefix("argument ").partition(": ")
    word = flag.split("/")[0] if message.startswith("argument ") else next((w for w in arguments if w.startswith("-")), "")
    return ConfigError("argument", word, problem or message, listing)
