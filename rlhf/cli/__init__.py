"""The command line: one file per verb. `python -m rlhf` and the `rlhf` script are the same program."""

import importlib
import re
import sys
from collections.abc import Callable, Sequence

# A verb: its module, which has `main(arguments)`.
VERBS = {
    "run": "rlhf.cli.run",
    "plan": "rlhf.cli.plan",
    "status": "rlhf.cli.status",
    "report": "rlhf.cli.report",
    "bench": "rlhf.cli.bench",
}


def main() -> int:
    """Run the verb that the first word names, `run` if it names none; returns the exit code.

    A verb is a first word of letters alone. All other words are overrides, as Hydra reads them, and flags.
    """
    arguments = sys.argv[1:]
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


def call(verb: str, arguments: Sequence[str]) -> int:
    """Import the module of a verb, and run it."""
    run: Callable[[list[str]], int] = importlib.import_module(VERBS[verb]).main
    return run(list(arguments))
