"""Show what the models will read, before anything starts: records read, kept and left out, their lengths in tokens, the
steps that follow, and the first records with all their special tokens.

    python -m rlhf data data=hh-rlhf model=opt-1.3b     # of all stages of the command
    python -m rlhf data stage=sft --samples 10          # the first ten records of each stage (3 by default; 0: none)
    python -m rlhf data data=hh-rlhf --json             # one object for scripts
    python -m rlhf data -m data=hh-rlhf,ultrafeedback   # of a sweep: each point's

Overrides are those of `python -m rlhf`. The records are encoded, which takes no GPU and no weights, only the tokenizer.
Runs with the same data, tokenizer and lengths use what is written to outputs/data. Exit codes: 0, or 2 for bad input and
where a run would be refused: too few records for a batch, none to evaluate on.
"""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlhf.catalog.stage import kind_of
from rlhf.cli.arguments import read_overrides, run_verb
from rlhf.cli.data_tables import print_data
from rlhf.cli.prepare import read_data, reads_records
from rlhf.cli.run import compose_points
from rlhf.config.errors import ConfigError, Invalid
from rlhf.config.points import Composer
from rlhf.config.terminal import Terminal, open_table_console
from rlhf.data.check import record_notes, record_warnings
from rlhf.experiment.sweep import Point, build_task_graph, lay_out

if TYPE_CHECKING:
    from rlhf.stages.reading import StageData

SAMPLES = 3


def main(arguments: list[str]) -> int:
    """Print what the arguments ask for; returns the exit code."""
    return run_verb(print_records, arguments, str(__doc__))


def print_records(arguments: list[str], console: Terminal) -> None:
    """Print what the arguments ask for. Raises ConfigError."""
    words, samples = take_samples(arguments)
    show_data([word for word in words if word != "--json"], samples, "--json" in words)


def take_samples(arguments: list[str]) -> tuple[list[str], int]:
    """Take `--samples N` out of the arguments; returns the others, and N. Raises ConfigError where it is no number."""
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--samples=") else [word])]
    if "--samples" not in words:
        return words, SAMPLES
    place = words.index("--samples")
    given = words[place + 1] if place + 1 < len(words) else ""
    if not given.isdecimal():
        raise ConfigError("--samples", given, "it is no number of records", "give one, as --samples 3")
    return words[:place] + words[place + 2 :], int(given)


def show_data(words: list[str], samples: int, as_json: bool) -> None:
    """Compose what the overrides describe, and show its data. Raises ConfigError, or Invalid with all that is wrong."""
    command = read_overrides(words, "data")
    sys.argv[1:] = command.words
    with Composer(command) as composer:
        points, _ = compose_points(composer)
    tasks = [task for task in lay_out(build_task_graph(points)) if kind_of(task.node.stage).reads is not None]
    read, problems = read_data(tasks)
    notes = list(dict.fromkeys(note for task in tasks if reads_records(task) for note in record_notes(task.config)))
    if as_json:
        told = {point.name: describe_point(point, read, samples) for point in points}
        print(json.dumps(told[points[0].name] if len(points) == 1 else {"points": told}, indent=1, default=str))
    else:
        from rlhf.stages.reading import reading_warnings

        console = open_table_console()
        distinct = list({found.identity: found for found in read.values()}.values())
        for note in dict.fromkeys([*notes, *reading_warnings(distinct)]):
            console.print(note, soft_wrap=not console.is_terminal)
        print_data(distinct, samples, console)
    if problems:
        raise Invalid(problems, len(points))


def describe_point(point: Point, read: Mapping[str, "StageData"], samples: int) -> dict[str, Any]:
    """Return what --json prints of a point."""
    from rlhf.stages.reading import describe_data, reading_warnings

    stages = [read[node.fingerprint] for node in point.stages if node.fingerprint in read]
    source = point.config.data.source
    warnings = [*(record_warnings(point.config) if source != "demo" else ()), *reading_warnings(stages)]
    return describe_data(stages, warnings, samples)
