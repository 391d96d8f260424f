"""The command line: one file per verb. `python -m rlhf` and the `rlhf` script are the same program."""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

# A verb: its module, which has `main(arguments)`.
VERBS = {
    "run": "rlhf.cli.run",
    "plan": "rlhf.cli.plan",
    "data": "rlhf.cli.data",
    "status": "rlhf.cli.status",
    "report": "rlhf.cli.report",
    "chat": "rlhf.cli.chat",
    "serve": "rlhf.cli.serve",
    "bench": "rlhf.cli.bench",
    "growth": "rlhf.cli.growth",
    "fetch": "rlhf.cli.fetch",
    "push": "rlhf.cli.push",
    "evaluate": "rlhf.cli.evaluate",
    "evaluate-reward": "rlhf.cli.evaluate_reward",
    "serve-reward": "rlhf.cli.serve_reward",
    "convert-reward": "rlhf.cli.convert_reward",
}

# What --version names beside this program.
LIBRARIES = ("torch", "deepspeed", "transformers", "hydra-core")


def main() -> int:
    """Run the verb that the first word names, `run` if it names none; returns the exit code.

    A verb is a first word of letters alone. All other words are overrides, as Hydra reads them, and flags.
    """
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(describe_versions())
        return 0
    if not arguments or not re.fullmatch(r"[A-Za-z][\w-]*", arguments[0]):
        return call("run", arguments)
    verb = arguments.pop(0)
    if verb not in VERBS:
        from rlhf.config.hydra_errors import unknown_option
        from rlhf.config.terminal import Terminal

        Terminal(stderr=True, soft_wrap=True).print(f"error: {unknown_option('verb', verb, list(VERBS))}")
        return 2
    sys.argv[1:] = arguments
    return call(verb, arguments)


def describe_versions() -> str:
    """Name the version of this program and of the libraries that results depend on most. Imports none of them."""
    own: str = importlib.import_module("rlhf").__version__
    found = [f"{name} {installed}" for name in LIBRARIES if (installed := find_version(name))]
    return f"rlhf {own} ({', '.join(found)})"


def find_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def call(verb: str, arguments: Sequence[str]) -> int:
    """Import the module of a verb, and run it."""
    run: Callable[[list[str]], int] = importlib.import_module(VERBS[verb]).main
    return run(list(arguments))
