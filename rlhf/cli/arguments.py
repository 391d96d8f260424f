"""The flags of a verb that takes overrides too."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rlhf.config.command import Command, read_command
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal

PORTS = 65535
INTERRUPTED = 130
# What argparse's complaint of an unknown flag begins with.
UNKNOWN = "unrecognized arguments: "


class Arguments(argparse.ArgumentParser):
    """A verb's own flags; what is wrong with them is raised.

    Args:
        verb: The verb, for errors.
    """

    def __init__(self, verb: str) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.verb = verb

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it leaves."""
        if message.startswith(UNKNOWN):
            raise unknown_flag(message.removeprefix(UNKNOWN).split()[0], self.verb)
        raise ConfigError("argument", message, "it cannot be read", f"`python -m rlhf {self.verb} --help` says more")

    def add_address(self, port: int) -> None:
        """Add the flags of what listens: on the loopback interface, unless told otherwise."""
        self.add_argument("--host", default="127.0.0.1")
        self.add_argument("--port", type=int, default=port)


def check_port(port: int) -> None:
    """Raise ConfigError for what is no port."""
    if not 0 <= port <= PORTS:
        raise ConfigError("argument", f"--port {port}", f"a port is at most {PORTS}", "give another one")


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the models and the overrides among the words of a command: an override has a = and is no path."""
    models = [word for word in words if "=" not in word or Path(word).exists()]
    return models, [word for word in words if word not in models]


def unknown_flag(word: str, verb: str) -> ConfigError:
    """Return the error of a flag that a verb does not have."""
    return ConfigError("argument", word, "there is no such flag", f"`python -m rlhf {verb} --help` lists the flags")


def read_overrides(words: list[str], verb: str) -> Command:
    """Return the overrides and Hydra's own flags, as -m, of a verb that shows what `python -m rlhf` would do with them.
    Raises ConfigError for what is neither, and for a flag with which Hydra would show something else."""
    command = read_command(words, f"`python -m rlhf {verb} --help` lists the flags")
    if command.shows:
        raise unknown_flag(command.flags[0], verb)
    return command


def run_verb(
    run: Callable[[list[str], Terminal], int | None], arguments: list[str], text: str, interrupted: int = INTERRUPTED
) -> int:
    """Run a verb, or print its help `text`; returns the exit code: the verb's own, by default 0; 2 for bad input; or, where
    Ctrl-C ends it, `interrupted`, which is 0 for a server, that nothing else ends."""
    console, errors = Terminal(soft_wrap=True), Terminal(stderr=True, soft_wrap=True)
    if {"-h", "--help"} & set(arguments):
        console.print(text)
        return 0
    try:
        return run(arguments, console) or 0
    except ConfigError as error:
        errors.print_errors(error)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted")
        return interrupted
