"""The entry: compose every point with Hydra, check all of them, merge their stages into one graph, run what is not done.

Nothing here imports torch or deepspeed, unless a model that the user names is looked at. Hydra's jobs only hand their
configuration in, so that all points of a sweep are composed and checked before the first one starts.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from rlhf.config.checks import check_devices
from rlhf.config.compose import config_root, from_hydra, quoted, register, typed
from rlhf.config.errors import ConfigError
from rlhf.experiment.checkpoints import check_layout, discard
from rlhf.experiment.graph import nodes
from rlhf.experiment.record import forget, record
from rlhf.experiment.store import StageDirectory
from rlhf.experiment.summary import print_failures, print_plan, print_summary, print_sweep
from rlhf.experiment.sweep import Outcome, Point, Task, merged
from rlhf.launch import execute
from rlhf.prepare import check_sources, estimates, prepared
from rlhf.search import search, wants_search

Handed = tuple[DictConfig, list[str], Path, bool]
MULTIRUN = {"-m", "--multirun"}


class Invalid(Exception):
    """Points that cannot work, each with the reason."""

    def __init__(self, problems: list[tuple[str, ConfigError]], points: int) -> None:
        single = [(name, problem) for name, error in problems for problem in error.problems]
        lines = [f"{name}: {problem}" if points > 1 else str(problem) for name, problem in single]
        super().__init__("\n".join(dict.fromkeys(lines)))


def main() -> int:
    """Run what the command line asks for; returns the exit code: 0 done or submitted, 1 a stage failed, 2 bad input, 130
    stopped."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        if wants_search(sys.argv[1:]):
            return search(sys.argv[1:], run_one)
        composed = compose()
        try:
            return run(points_of(composed))
        except (ConfigError, Invalid):
            forget([directory for _, _, directory, _ in composed])
            raise
    except (ConfigError, Invalid) as error:
        for line in str(error).splitlines():
            console.print(f"[bold red]error:[/] {escape(line)}")
        return 2
    except KeyboardInterrupt:
        console.print("[bold red]interrupted[/]")
        return 130


def compose() -> list[Handed]:
    """All points that the command line describes, with their overrides and directories, and whether they are a sweep's;
    none for --help, --cfg and the like."""
    register()
    sys.argv[1:] = quoted(sys.argv[1:])
    composed: list[Handed] = []

    @hydra.main(version_base="1.3", config_path=str(config_root() / "conf"), config_name="config")
    def hand_in(config: DictConfig) -> None:
        job = HydraConfig.get()
        swept = job.mode == RunMode.MULTIRUN
        composed.append((config, list(job.overrides.task), Path(job.runtime.output_dir), swept))

    try:
        without_hydras_report(hand_in)
    except ConfigError:
        forget([directory for _, _, directory, _ in composed] or sweep_directory())
        raise
    flags = [word for word in sys.argv[1:] if word.startswith("-")]
    if not composed and flags and set(flags) <= MULTIRUN:
        forget(sweep_directory())
        swept = " ".join(word for word in sys.argv[1:] if word not in flags)
        raise ConfigError("override", swept, "the sweep has no points", "give at least one value of each key")
    return composed


def sweep_directory() -> list[Path]:
    """Where Hydra has put multirun.yaml, which it does before it composes the first point; none if it cannot have."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    if not MULTIRUN & set(sys.argv):
        return []
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
            place = hydra.compose("config", overrides=fixed, return_hydra_config=True).hydra.sweep.dir
    except (HydraException, OmegaConfBaseException, ValueError):
        return []
    return [Path(place).absolute()]


def without_hydras_report(action: Callable[[], None]) -> None:
    """Run Hydra so that what is wrong is raised, in one line, instead of printed in several."""
    wanted_traceback = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        action()
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        if wanted_traceback == "1":
            raise
        raise from_hydra(error, sys.argv[1:]) from error
    except OSError as error:
        problem = f"it cannot be written ({error.strerror})"
        raise ConfigError("output_root", error.filename, problem, "choose another directory: output_root=...") from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wanted_traceback is not None:
            os.environ["HYDRA_FULL_ERROR"] = wanted_traceback


def points_of(composed: list[Handed]) -> list[Point]:
    """The points, checked. Raises Invalid with everything that is wrong in any of them."""
    points, problems = [], []
    for config, overrides, directory, swept in composed:
        try:
            checked = prepared(typed(config))
            points.append(Point(checked, overrides, directory, swept, nodes(checked)))
        except ConfigError as error:
            problems.append((directory.name, error))
    if problems:
        raise problems[0][1] if len(composed) == 1 else Invalid(problems, len(composed))
    return points


def run(points: list[Point]) -> int:
    """Run the stages of some points that are not done, reuse those that are, and show what came out."""
    if not points:
        return 0
    tasks, terminal = merged(points), Console()
    console = terminal if terminal.is_terminal else Console(width=160)
    waiting = [task for task in tasks if not task.node.directory.done]
    check_tasks(tasks, waiting)
    first = points[0].config
    if first.dry_run or points[0].swept:
        print_plan(points, tasks, estimates(waiting), console)
    if first.dry_run:
        forget([point.directory for point in points])
        return 0
    outcomes = {task.key: Outcome("reused") for task in tasks if task not in waiting}
    for point in points:
        record(point, outcomes)
    for task in (task for task in tasks if task not in waiting):
        discard(task.node.directory.path)  # of a stage that was killed before it could
        if not points[0].swept:
            console.print(f"[green]✓[/] {task.node.stage}: done before, {task.node.directory.path}", soft_wrap=True)
    if waiting:
        outcomes |= execute(waiting, console)
    for point in points:
        record(point, outcomes)
    if points[0].swept:
        print_sweep(points, outcomes, console)
        if first.tracking.wandb.enabled:
            from rlhf.track.wandb import log_sweep

            log_sweep(points, tasks, outcomes)
    else:
        print_summary(points[0].stages, outcomes, console)
    print_failures(tasks, outcomes, Console(stderr=True, soft_wrap=True))
    return exit_code({outcome.state for outcome in outcomes.values()})


def exit_code(states: set[str]) -> int:
    """What a script is told: 1 if a stage failed, 130 if one was stopped, else 0."""
    return 1 if states & {"failed", "skipped"} else 130 if "stopped" in states else 0


def run_one(config: DictConfig, overrides: list[str], directory: Path) -> tuple[int, Point]:
    """Run one point of a search, beside a configuration file as Hydra leaves one."""
    (point,) = points_of([(config, overrides, directory, False)])
    (directory / ".hydra").mkdir(parents=True, exist_ok=True)
    (directory / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(config))
    return run([point]), point


def check_tasks(tasks: list[Task], waiting: list[Task]) -> None:
    """Look at what stages start from, and at the devices they want, before the first one starts. Raises Invalid."""
    problems: list[tuple[str, ConfigError]] = []
    needed = {parent for task in waiting for parent in task.parents}
    known = {task.key for task in tasks}
    for task in tasks:
        try:
            if task in waiting:
                check_devices(task.config)
                check_sources(task.config, task.node)
                if task.config.checkpoint.resume:
                    check_layout(task.node.directory.path, task.config, task.node.stage)
            else:
                check_done(task.node.directory, task.key in needed)
            for place in inputs_of(task, known) if task in waiting else []:
                check_done(place, True)
        except ConfigError as error:
            problems.append((", ".join(task.points), error))
    if problems:
        raise Invalid(problems, len({name for task in tasks for name in task.points}))


def inputs_of(task: Task, known: set[str]) -> list[StageDirectory]:
    """The finished stages that a stage found by fingerprint, in the order of its parents, but for those of the graph."""
    names = [
        name for name, given in (("actor", task.config.ppo.actor), ("reward", task.config.ppo.reward)) if given is None
    ]
    found = zip(names, task.parents, strict=True) if task.parents else ()
    return [StageDirectory(Path(task.node.inputs[name]).parent) for name, parent in found if parent not in known]


def check_done(directory: StageDirectory, needed: bool) -> None:
    """A finished stage that was damaged since is refused, and so is one whose model is gone if another stage needs it."""
    try:
        directory.result()
        problem = directory.damage() if needed else None
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        fix = "remove the directory, and the stage is trained again"
        raise ConfigError(directory.path.name.rpartition("-")[0], directory.path, problem, fix)
