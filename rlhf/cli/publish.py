"""What follows a run: its sweep's runs of W&B, where offline ones lie, and the models that are pushed to the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config
from rlhf.config.secrets import mask
from rlhf.config.terminal import Terminal, plural
from rlhf.experiment.sweep import Outcome, Point, Task
from rlhf.tracking.hub import KEY, Push, check_access, plan_pushes, try_push

# So many pushes are told one by one.
MOST = 8


def publish(
    points: list[Point], tasks: list[Task], outcomes: dict[str, Outcome], pushes: Sequence[Push], console: Terminal
) -> int:
    """Finish what trackers and the hub are told of a run; returns the exit code: 1 if W&B or the hub did not take it."""
    untold = False
    if points[0].config.tracking.wandb.enabled:
        untold = not finish_wandb(points, tasks, outcomes, console)
    return push_models(pushes, outcomes, console) or int(untold)


def finish_wandb(points: list[Point], tasks: list[Task], outcomes: dict[str, Outcome], console: Terminal) -> bool:
    """Log the runs of a sweep to W&B, and say where runs lie that were written offline. Returns whether W&B took them."""
    import wandb

    from rlhf.tracking.wandb import teardown
    from rlhf.tracking.wandb_sweep import gather_offline_runs, log_point, log_sweep

    try:
        if points[0].swept:
            log_sweep(points, tasks, outcomes)
        elif points[0].sweep is not None:  # of a search, whose points come one by one
            log_point(points[0], points[0].name.replace(",", " "), outcomes)
            teardown()
    except wandb.Error as error:
        told = f"W&B has not taken the runs of the sweep ({mask(first_line(error))}); type the same command again"
        Terminal(stderr=True, soft_wrap=True).print_errors(told)
        return False
    directory, number = gather_offline_runs(points)
    if number:
        here = Path.cwd()
        directory = directory.relative_to(here) if directory.is_relative_to(here) else directory
        console.print(f"{plural(number, 'W&B run')} written offline; where there is network, upload by")
        console.print(f"  wandb sync {directory}/offline-run-*", soft_wrap=True)
    return True


def prepare_pushes(points: list[Point], tasks: list[Task]) -> list[Push]:
    """Return what is to be pushed. Raises ConfigError where that cannot be, before anything starts."""
    pushes = plan_pushes(points, tasks)
    if pushes and not points[0].config.dry_run:
        check_access(KEY, pushes[0].repo)
    return pushes


def check_search(config: Config) -> None:
    """Refuse a repository that all points of a search would share, since they come one by one. Raises ConfigError."""
    pattern = config.hub.push
    if pattern is not None and not any(name in pattern for name in ("{point}", "{fingerprint}")):
        problem = "all points of the search would be pushed to it, one over the other"
        raise ConfigError(KEY, pattern, problem, "put {point} into it, or push the best one: python -m rlhf push DIR REPO")


def print_pushes(pushes: Sequence[Push], console: Terminal) -> None:
    """Say which models are to be pushed, and to where."""
    for push in pushes[:MOST]:
        console.print(push.describe(), soft_wrap=True)
    if len(pushes) > MOST:
        console.print(f"hub.push: {plural(len(pushes) - MOST, 'more model')}")


def push_models(pushes: Sequence[Push], outcomes: Mapping[str, Outcome], console: Terminal) -> int:
    """Push the models of the stages that are done; returns the exit code: 1 if one could not be pushed."""
    failed = False
    for push in pushes:
        directory, outcome = push.task.node.directory, outcomes[push.task.key]
        name = directory.path.name
        if not outcome.good:
            told = f"hub.push: {name} is {outcome.state}, and not pushed; the same command pushes it when it is done"
            console.print(told, soft_wrap=True)
            continue
        address, problem = try_push(directory.model, push.repo, push.task.config.hub, f"{name}, by rlhf")
        if problem is None:
            console.print(f"hub.push: {name} is at {address}", soft_wrap=True)
        else:
            failed = True
            Terminal(stderr=True, soft_wrap=True).print_errors(problem)
    return int(failed)
