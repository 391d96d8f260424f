"""What is said of a graph of stages each time that one of them has ended: why it failed, how many have ended, and what is
still to come."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from rlhf.config.terminal import make_printable
from rlhf.experiment.plan import describe_remaining
from rlhf.experiment.sweep import Outcome, Task
from rlhf.planner.remaining import Progress, add_up_remaining, seconds_left


def print_remaining(tasks: Sequence[Task], outcomes: Mapping[str, Outcome], slots: int, console: Console) -> None:
    """Print a line about a graph of several stages, unless all of them have ended; so many run at a time."""
    if not 0 < len(outcomes) < len(tasks):
        return
    remaining = add_up_remaining({task.key: find_progress(task, outcomes.get(task.key)) for task in tasks}, slots)
    told = describe_remaining(remaining)
    console.print(f"{len(outcomes)} of {len(tasks)} stages ended{'; ' if told else ''}{told}", soft_wrap=True)


def print_failure(task: Task, outcome: Outcome, console: Console) -> None:
    """Print why a stage of a sweep failed as soon as it has; the end says it again, for all of them."""
    if task.label and outcome.state == "failed":
        told = f" {task.node.stage}, {task.label}: {outcome.reason}"
        console.print(Text.assemble(("failed", "bold red"), make_printable(told)), soft_wrap=True)


def find_progress(task: Task, outcome: Outcome | None) -> Progress:
    """Return how far a stage is, by its status; one that has ended takes no more time."""
    kind, directory = task.node.stage, task.node.directory
    if outcome is not None:
        if outcome.state == "reused":
            return Progress(kind, task.parents, None, left=0.0)
        return Progress(kind, task.parents, task.planned, directory.seconds, 0.0, failed=not outcome.good)
    step, total, spent = directory.counted("step"), directory.counted("total"), directory.seconds
    if directory.status().get("state") != "running" or not step:
        return Progress(kind, task.parents, task.planned, spent)
    return Progress(kind, task.parents, task.planned, spent, seconds_left(task.planned, step, total, spent / step))
