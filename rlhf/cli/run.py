"""The entry: compose every point as Hydra does, check all of them, merge their stages into one graph, run what is not done.

Nothing here imports torch or deepspeed, unless a model that the user names is looked at. All points of a sweep are composed
and checked before the first one starts, and before anything is written.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.progress import track
from rich.text import Text

from rlhf.catalog.stage import kind_of
from rlhf.cli.changes import check_plan
from rlhf.cli.data_tables import data_notes
from rlhf.cli.fetch import print_unseen
from rlhf.cli.prepare import (
    build_point,
    check_records,
    check_sources,
    is_encoded_first,
    plan_graph,
    read_data,
    reads_records,
)
from rlhf.cli.publish import check_search, prepare_pushes, print_pushes, publish
from rlhf.cli.search import search, wants_search
from rlhf.config import hydra_compat
from rlhf.config.checks import check_devices
from rlhf.config.command import Command, read_command
from rlhf.config.compose import config_root, point_name, register
from rlhf.config.disk import CLOSED, FULL, disk_problem
from rlhf.config.errors import ConfigError, Invalid
from rlhf.config.hub import find_hub_problem
from rlhf.config.hydra_errors import REFUSED, translate_error
from rlhf.config.keys import KEYS, get_key
from rlhf.config.overrides import parse
from rlhf.config.points import Composer, Job
from rlhf.config.secrets import secret_keys
from rlhf.config.sources import list_sources
from rlhf.config.terminal import Terminal, open_table_console
from rlhf.data.check import record_notes
from rlhf.experiment.checkpoints import check_layout, remove_all
from rlhf.experiment.directories import check_directories, link_latest
from rlhf.experiment.fingerprint import remember_files
from rlhf.experiment.plan import GraphPlan, print_plan
from rlhf.experiment.record import write_record
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.summary import print_failures, print_summary
from rlhf.experiment.sweep import Outcome, Point, Task, build_task_graph, lay_out
from rlhf.experiment.sweep_table import print_sweep
from rlhf.launch import execute
from rlhf.planner.remaining import summarize_plan

# A sweep of so many points takes seconds to plan, which a bar shows.
MANY_POINTS = 30


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; returns the exit code: 0 done or submitted, 1 a stage failed, 2 bad input, 130
    stopped."""
    console = Terminal(stderr=True, soft_wrap=True)
    try:
        command = read_command(arguments)
        sys.argv[1:] = command.words
        if command.shows:
            return show(command)
        with Composer(command) as composer:
            if wants_search(composer):
                return search(composer, partial(run_one, composer))
            with remember_files():
                return run(*compose_points(composer))
    except ConfigError as error:
        console.print_errors(error)
        return 2
    except OSError as error:  # of what the launching process itself writes
        if error.errno not in (*FULL, *CLOSED):
            raise
        console.print_errors(disk_problem(error, Path.cwd()))
        return 1
    except KeyboardInterrupt:
        console.print(Text("interrupted", style="bold red"))
        return 130


def show(command: Command) -> int:
    """Let Hydra answer --help, --cfg, --info, completions and the like. Raises ConfigError for what it refuses."""
    register()
    if not ({"-sc", "--shell-completion"} & set(command.flags)):  # what is being completed may be no override yet
        for word in command.overrides:
            parse(word)

    @hydra.main(version_base="1.3", config_path=str(config_root() / "conf"), config_name="config")
    def nothing(config: DictConfig) -> None:
        """Nothing runs."""

    export_own_model(command)
    wanted_traceback = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that what is wrong is raised, instead of printed in several lines
    try:
        with hydra_compat.read_once():
            nothing()
    except REFUSED as error:
        if wanted_traceback == "1":
            raise
        with Composer(command) as composer:
            composer.check()
            raise translate_error(error, command.overrides, composer.raw_load) from error
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wanted_traceback is not None:
            os.environ["HYDRA_FULL_ERROR"] = wanted_traceback
    return 0


def export_own_model(command: Command) -> None:
    """Let Hydra choose by the model that model=local names, as a run does; what is wrong with the words is told after.
    Raises ConfigError for a model of unknown size: hyperparameters that follow it would be shown wrong."""
    with Composer(command) as composer:
        try:
            config = composer.compose(composer.points[0])
        except (ConfigError, *REFUSED):
            register()
            return
        if composer.lacks_facts(config):
            problem = "its size, which hyperparameters follow, cannot be read"
            raise ConfigError(
                "model.path", config.model.path, problem, "give a directory that holds config.json, or a hub id"
            )


def compose_points(composer: Composer) -> tuple[list[Point], Callable[[], None]]:
    """Return the points of a command, checked, and what writes Hydra's files of them. Raises ConfigError, or Invalid with
    everything that is wrong in any of them."""
    points, jobs, problems = [], [], []
    described, command_line = composer.points, composer.command.words
    for number, overrides in enumerate(progress_bar(described, "checking points")):
        try:
            job = composer.compose_job(overrides, number)
            point = build_point(job.config, job.overrides, job.directory, composer.swept)
        except ConfigError as error:
            problems.append((point_name(overrides, command_line), error))
            continue
        points.append(point)
        jobs.append(job)
    if problems:
        alike = len(problems) == len(described) and len({str(error) for _, error in problems}) == 1
        raise problems[0][1] if alike else Invalid(problems, len(described))
    check_decided_once(points)
    refuse_pruner(points[0])
    return points, lambda: save_config(composer, jobs)


def progress_bar(described: list[list[str]], what: str) -> Iterator[list[str]]:
    """Yield the points one after another, behind a bar if they are many and the output is a terminal."""
    console = Terminal(stderr=True)
    hidden = len(described) < MANY_POINTS or not console.is_terminal
    return iter(track(described, what, console=console, transient=True, disable=hidden))


def check_decided_once(points: list[Point]) -> None:
    """Refuse a sweep over keys that hold for the sweep as a whole: the first point would decide them for all."""
    for key in (name for name, key in KEYS.items() if key.once):
        values = list(
            dict.fromkeys(
                get_key(point.config, key) for point in points if not isinstance(get_key(point.config, key), list)
            )
        )
        if len(values) > 1:
            problem = "it holds for a whole sweep, and cannot differ between its points"
            raise ConfigError(key, ",".join(map(str, values)), problem, "give it one value, or type a command for each")


def refuse_pruner(point: Point) -> None:
    """Refuse a pruner in a sweep over lists, which runs all of its points."""
    pruner = point.config.sweep.pruner
    if point.swept and pruner != "none":
        fix = "give one key an interval, as ppo.kl_coef=interval(0.01,0.5), or set sweep.pruner=none"
        raise ConfigError("sweep.pruner", pruner, "a sweep over lists runs all of its points", fix)


def save_config(composer: Composer, jobs: list[Job]) -> None:
    """Write what Hydra writes of points that are to run. Raises ConfigError where that cannot be."""
    try:
        composer.save(jobs)
    except OSError as error:
        root, problem = jobs[0].config.output_root, disk_problem(error, jobs[0].directory)
        raise ConfigError("output_root", root, problem, "choose another directory: output_root=...") from error


def run(points: list[Point], begin: Callable[[], None]) -> int:
    """Run the stages of some points that are not done, reuse those that are, and show what came out. `begin` is called
    before the first one starts, unless nothing is to run."""
    tasks, console = lay_out(build_task_graph(points)), open_table_console()
    waiting = [task for task in tasks if not task.node.directory.done]
    check_directories(points)
    check_tasks(tasks, waiting)
    pushes = prepare_pushes(points, tasks)
    notes = [note for task in waiting if reads_records(task) for note in record_notes(task.config)]
    for note in dict.fromkeys([*notes, *look_at_data(waiting)]):
        console.print(note, soft_wrap=True)
    first = points[0].config
    plan = plan_graph(points, tasks, waiting)
    present_plan(plan, begin, console)
    print_pushes(pushes, console)
    if first.dry_run:
        return 0
    warn_of_secrets(points, console)
    outcomes = {task.key: Outcome("reused") for task in tasks if task not in waiting}
    for point in points:
        write_record(point, outcomes, plan.plans)
    link_latest(points)
    for task in (task for task in tasks if task not in waiting):
        remove_all(task.node.directory.path)  # of a stage that was killed before it could
        if not points[0].swept:
            told = f" {task.node.stage}: done before, {task.node.directory.path}"
            console.print(Text.assemble(("✓", "green"), told), soft_wrap=True)
    if waiting:
        outcomes |= execute([replace(t, planned=summarize_plan(plan.plans[t.key])) for t in waiting], console)
    for point in points:
        write_record(point, outcomes, plan.plans)
    if points[0].swept:
        print_sweep(points, outcomes, console)
    else:
        print_summary(points[0].stages, outcomes, console)
    unpublished = publish(points, tasks, outcomes, pushes, console)
    print_failures(tasks, outcomes, Terminal(stderr=True, soft_wrap=True))
    return exit_code({outcome.state for outcome in outcomes.values()}) or unpublished


def look_at_data(waiting: list[Task]) -> list[str]:
    """Encode what the stages will read where nobody has, and return what is to be said of it. Raises Invalid with all that
    is wrong."""
    tasks = [task for task in waiting if is_encoded_first(task)]
    if not tasks:
        return []
    read, problems = read_data(tasks)
    if problems:
        raise Invalid(problems, len({name for task in tasks for name in task.points}))
    return data_notes(list({found.identity: found for found in read.values()}.values()))


def present_plan(plan: GraphPlan, begin: Callable[[], None], console: Terminal) -> None:
    """Show what is to run, and begin it unless it is only looked at. Raises Invalid for a plan that does not fit or costs
    too much, or warns of it, as `plan.check` wants it."""
    first, swept = plan.points[0].config, plan.points[0].swept
    problems = [] if first.plan.check == "off" else check_plan(plan)
    refused = Invalid(problems, len(plan.points)) if problems and first.plan.check == "refuse" else None
    if not first.dry_run and refused is None:
        begin()
    if plan.waiting or first.dry_run or swept:
        print_plan(plan, console)
        print_cost(len(plan.points), console)
    if first.dry_run:
        print_unseen([task.config for task in plan.tasks if task.key in plan.waiting], console)
    if refused is not None:
        raise refused
    for _, problem in problems:
        Terminal(stderr=True, soft_wrap=True).print(Text.assemble(("warning:", "yellow"), f" {problem}"))


def warn_of_secrets(points: list[Point], console: Terminal) -> None:
    """Say which keys hold a secret, and where it is kept."""
    for key in dict.fromkeys(key for point in points for key in secret_keys(asdict(point.config))):
        where = "it is masked in what is written and uploaded; spec.json, which a stage needs, is readable by you alone"
        console.print(f"{key} holds a secret: {where}", soft_wrap=True)


def print_cost(points: int, console: Terminal) -> None:
    """Say what a long plan cost, from the start of this process."""
    if points >= MANY_POINTS:
        seconds = time.process_time()
        console.print(f"planned in {seconds:.3g} s of CPU time, {seconds / points:.3f} s a point")


def exit_code(states: set[str]) -> int:
    """Return the exit code: 1 if a stage failed, else 130 if one was stopped, else 0."""
    return 1 if states & {"failed", "skipped"} else 130 if "stopped" in states else 0


def run_one(composer: Composer, job: Job, during: Callable[[Point], AbstractContextManager[None]]) -> tuple[int, Point]:
    """Run one point of a search, within a context of it; returns the exit code and the point."""
    check_search(job.config)
    point = build_point(job.config, job.overrides, job.directory)
    with during(point):
        return run([point], lambda: save_config(composer, [job])), point


def check_tasks(tasks: list[Task], waiting: list[Task]) -> None:
    """Look at what stages start from, and, unless nothing is to run, at the devices they want. Raises Invalid with all that
    is wrong."""
    needed = {parent for task in waiting for parent in task.parents}
    known = {task.key for task in tasks}
    problems: list[tuple[str, ConfigError]] = []
    for task in tasks:
        checks: list[Callable[[], None]] = [partial(check_done, task.node.directory, task.key in needed)]
        if task in waiting:
            checks = [*list_checks(task), *(partial(check_done, directory, True) for directory in input_paths(task, known))]
        problems += [(", ".join(task.points), error) for error in collect_problems(checks)]
    if problems:
        raise Invalid(problems, len({name for task in tasks for name in task.points}))


def list_checks(task: Task) -> list[Callable[[], None]]:
    """List the checks of what a stage will read and, unless nothing is to run, of the devices it wants. Records of the hub
    are not downloaded to be looked at where the stage cannot run anyway."""
    config, node = task.config, task.node
    checks: list[Callable[[], None]] = [] if config.dry_run else [partial(check_devices, config)]
    hubs = [source.keys.hub for source in list_sources(config.data) if source.is_on_hub]
    blocked = bool(hubs) and any(collect_problems(checks))
    if not blocked or any(find_hub_problem(str(hub.name), hub.revision, "dataset") for hub in hubs):
        checks.append(partial(check_records, config, node))
    checks.append(partial(check_sources, config, node))
    if config.checkpoint.resume:
        checks.append(partial(check_layout, node.directory.path, config, node.stage))
    return checks


def collect_problems(checks: Iterable[Callable[[], None]]) -> Iterator[ConfigError]:
    """Yield the errors that some checks raise."""
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield error


def input_paths(task: Task, known: set[str]) -> list[StageDirectory]:
    """Return the finished stages outside the graph (`known`) that a stage starts from by their fingerprints, in the order
    of its parents."""
    inputs = kind_of(task.node.stage).find_inputs(task.config)
    names = [given.name for given in inputs if given.is_made(get_key(task.config, given.key))]
    found = zip(names, task.parents, strict=True) if task.parents else ()
    places = [StageDirectory(Path(task.node.inputs[name]).parent) for name, parent in found if parent not in known]
    return [place for place in places if place.done or not task.config.dry_run]


def check_done(directory: StageDirectory, needed: bool) -> None:
    """Refuse a finished stage that was damaged since, or whose model is gone, if another stage needs it."""
    try:
        directory.result()
        problem = directory.damage() if needed else None
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        fix = "remove the directory, and the stage is trained again"
        raise ConfigError(directory.path.name.rpartition("-")[0], directory.path, problem, fix)
