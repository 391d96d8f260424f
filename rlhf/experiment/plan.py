"""The plan of a graph of stages: its totals, the table for people, the object for scripts, and what is wrong with it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.catalog.stage import kind_of
from rlhf.config.directories import is_finished_stage
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.config.terminal import format_dollars, format_duration, format_seconds, plural
from rlhf.experiment.checkpoints import checkpoint_dirs
from rlhf.experiment.stage_directory import is_stage_name
from rlhf.experiment.sweep import Point, Task
from rlhf.planner.auto import HOST_SHARE
from rlhf.planner.constants import load_constants
from rlhf.planner.cost import JudgeCalls, Step, Totals, add_up
from rlhf.planner.memory import GIB
from rlhf.planner.plan import HOUR, StagePlan
from rlhf.planner.remaining import BESIDE_STEPS, Remaining

# The columns of the table, those of text, and what a narrow table leaves out first, in words: of `stage` its directory.
COLUMNS = ("", "stage", "after", "points", "steps", "GiB/GPU", "time", "cost")
LEFT = ("stage", "after", "points")
LEAST = {"stage": "directories", "after": "what each stage waits for", "steps": "steps"}
# Points are folded into a column of so many characters.
FOLDED = 24


@dataclass(frozen=True)
class GraphPlan:
    """A graph of stages with the plan of each, by fingerprint; those in `waiting` are to run, the others are done. `judge`
    are the calls of a judge of their answers, where one is asked."""

    points: Sequence[Point]
    tasks: Sequence[Task]
    waiting: frozenset[str]
    plans: Mapping[str, StagePlan]
    judge: JudgeCalls | None = None

    @property
    def totals(self) -> Totals:
        """Add up what the stages that are to run take."""
        steps = [Step(t.key, t.parents, self.plans[t.key]) for t in self.tasks if t.key in self.waiting]
        return add_up(steps, count_slots(self.tasks[0].config))

    @property
    def unshared_dollars(self) -> float | None:
        """Return the dollars of all points if each ran all its stages itself, those that are done too."""
        costs = [(len(task.points), self.plans[task.key].dollars) for task in self.tasks]
        return None if any(cost is None for _, cost in costs) else sum(count * (cost or 0.0) for count, cost in costs)


def count_slots(config: Config) -> int:
    """Count the stages that may run at a time."""
    launcher = config.launcher
    return launcher.array_parallelism if launcher.kind == "slurm" else launcher.parallel


def find_plan_problems(plan: GraphPlan) -> list[tuple[list[str], ConfigError]]:
    """Find the stages that do not fit, and the limits that the whole exceeds; each with the points that it concerns."""
    found = [(task.points, lacking(task, plan.plans[task.key])) for task in plan.tasks if task.key in plan.waiting]
    problems = [(points, error) for points, error in found if error is not None]
    totals, limits = plan.totals, plan.tasks[0].config.plan
    names = [point.name for point in plan.points]
    if limits.max_hours is not None and totals.seconds is not None and totals.seconds > limits.max_hours * HOUR:
        problem = f"the plan takes {format_seconds(totals.seconds)}"
        problems.append((names, ConfigError("plan.max_hours", limits.max_hours, problem, "raise it, or ask for less")))
    judged = 0.0 if plan.judge is None or plan.judge.dollars is None else plan.judge.dollars
    if limits.max_dollars is not None and totals.dollars is not None and totals.dollars + judged > limits.max_dollars:
        problem = f"the plan costs ${totals.dollars + judged:,.2f}"
        problems.append((names, ConfigError("plan.max_dollars", limits.max_dollars, problem, "raise it, or ask for less")))
    return problems


def lacking(task: Task, plan: StagePlan) -> ConfigError | None:
    """Return what a stage lacks, as an error whose fix is still to be found; None if it fits."""
    if plan.fits:
        return None
    stage, hardware = task.node.stage, task.config.hardware
    if "GPU" in plan.lacking:
        parts = plan.memory[plan.fullest]
        most = sorted((name for name in parts if parts[name] > 0), key=lambda name: -parts[name])[:3]
        shown = ", ".join(f"{name} {parts[name] / GIB:.1f}" for name in most)
        problem = (
            f"{stage} takes {plan.peak / GIB:.1f} GiB of a {hardware.gpu} with {hardware.memory_gib:g} GiB in its "
            f"{plan.fullest} phase ({shown})"
        )
        return ConfigError("hardware.memory_gib", hardware.memory_gib, problem, "")
    problem = (
        f"{stage} keeps {plan.host / GIB:.1f} GiB a GPU in main memory, and {HOST_SHARE:.0%} of "
        f"{hardware.host_memory_gib:g} GiB are there for it"
    )
    return ConfigError("hardware.host_memory_gib", hardware.host_memory_gib, problem, "")


def describe_plan(plan: GraphPlan) -> dict[str, Any]:
    """Return the object that `python -m rlhf plan --json` prints: seconds, GiB, GPU-hours and US dollars; null where the
    steps of a stage are not known."""
    totals = plan.totals
    return {
        "fits": totals.fits,
        "seconds": totals.seconds,
        "gpu_hours": totals.gpu_hours,
        "dollars": totals.dollars,
        "unshared_dollars": plan.unshared_dollars,
        "stages": [describe_stage(task, plan.plans[task.key], task.key not in plan.waiting) for task in plan.tasks],
    }


def describe_stage(task: Task, plan: StagePlan, reused: bool) -> dict[str, Any]:
    """Describe one stage of that object; a stage that is done takes nothing."""
    taken = {"seconds": plan.total_seconds, "gpu_hours": plan.gpu_hours, "dollars": plan.dollars}
    return {
        "stage": task.node.stage,
        "name": task.node.directory.path.name,
        "points": task.points,
        "reused": reused,
        "fits": reused or plan.fits,
        "steps": plan.steps,
        "gib_per_gpu": plan.peak / GIB,
        "host_gib": plan.host / GIB,
        "disk_gib": plan.disk / GIB,
        **(dict.fromkeys(taken, 0.0) if reused else taken),
        "uncounted": kind_of(task.node.stage).uncounted(task.config) or None,
        "layout": plan.layout,
        "phases": plan.phases,
        "memory": {
            phase: {name: value / GIB for name, value in parts.items() if value > 0} for phase, parts in plan.memory.items()
        },
    }


def print_plan(plan: GraphPlan, console: Console) -> None:
    """Print what will run, in which order and for which points, whether it fits, how long it takes and what it costs. Where
    the console is narrow, columns go by importance, and a line says which."""
    rows = [plan_row(plan, task) for task in plan.tasks]
    judged = [] if plan.judge is None else [judge_row(plan, plan.judge)]
    columns = [name for name in COLUMNS if name != "points" or len(plan.points) > 1]
    left_out: list[str] = []
    for name, told in LEAST.items():
        if measure_width([*rows, *judged], columns) <= console.width:
            break
        left_out.append(told)
        if name == "stage":
            for row, task in zip(rows, plan.tasks, strict=True):
                row["stage"] = task.node.stage
        else:
            columns.remove(name)
    table = Table(title=f"Plan: {plural(len(plan.points), 'point')}", title_justify="left")
    for name in columns:
        justify: Literal["left", "right"] = "left" if name in LEFT else "right"
        table.add_column(name, no_wrap=name != "points", overflow="fold", justify=justify)
    for task, row in zip(plan.tasks, rows, strict=True):
        is_waiting = task.key in plan.waiting
        style = "dim" if not is_waiting else None if plan.plans[task.key].fits else "red"
        table.add_row(*(Text(row[name]) for name in columns), style=style)
    for row in judged:
        table.add_row(*(Text(row[name]) for name in columns))
    console.print(table)
    if left_out:
        note = f"left out at {console.width} columns: {', '.join(left_out)}; a wider terminal and --json have them"
        console.print(Text(note), soft_wrap=True)
    for line in sentences(plan):
        console.print(Text(line), soft_wrap=True)


def plan_row(plan: GraphPlan, task: Task) -> dict[str, str]:
    """Return the cells of a stage by column; of one that is done there is nothing to plan."""
    numbers = {other.key: str(number) for number, other in enumerate(plan.tasks, start=1)}
    name, own = task.node.directory.path.name, plan.plans[task.key]
    if task.key not in plan.waiting:
        return dict.fromkeys(COLUMNS, "") | {"": "✓", "stage": name, "points": task.label, "steps": "done"}
    needs = ", ".join(numbers[parent] for parent in task.parents if parent in plan.waiting)
    cells = numbers[task.key], name, needs, task.label, steps_text(task, own), *costs_of(own)
    return dict(zip(COLUMNS, cells, strict=True))


def judge_row(plan: GraphPlan, judge: JudgeCalls) -> dict[str, str]:
    """Return the cells of the judge, which reads what all stages that are to run have answered."""
    needs = ", ".join(str(number) for number, task in enumerate(plan.tasks, start=1) if task.key in plan.waiting)
    calls = "?" if judge.number is None else f"{judge.number:,} calls"
    cost = "" if judge.dollars is None else format_dollars(judge.dollars)
    return dict.fromkeys(COLUMNS, "") | {"stage": "judge", "after": needs, "steps": calls, "cost": cost}


def measure_width(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> int:
    """Return the width of a table of rows in characters, with its lines; points take more than one line where they must."""
    sizes = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in columns}
    sizes |= {"points": min(sizes["points"], FOLDED)} if "points" in sizes else {}
    return sum(size + 3 for size in sizes.values()) + 1


def steps_text(task: Task, plan: StagePlan) -> str:
    """Return the steps of a stage, and how many of them are done."""
    done = task.node.directory.counted("step") if checkpoint_dirs(task.node.directory.path) else 0
    return "?" if plan.steps is None else f"{plan.steps:,}" + (f" ({done} done)" if done else "")


def costs_of(plan: StagePlan) -> list[str]:
    """Memory, time and cost of a stage as cells."""
    memory = f"{plan.peak / GIB:.1f}/{plan.room / GIB:.0f}"
    return [memory, format_seconds(plan.total_seconds), format_dollars(plan.dollars)]


def sentences(plan: GraphPlan) -> list[str]:
    """Return what the whole takes, and the layouts that were chosen."""
    kinds = Counter(task.node.stage for task in plan.tasks if task.key in plan.waiting)
    reused, totals = len(plan.tasks) - len(plan.waiting), plan.totals
    run = ", ".join(f"{number} {stage}" for stage, number in kinds.items())
    lines = [f"{run or 'nothing'} to run, {plural(reused, 'stage')} done before"]
    if plan.waiting and totals.seconds is None:
        lines.append("time and cost depend on records that are not here: what is on the hub is read when it runs")
    elif plan.waiting:
        config = plan.tasks[0].config
        at_once = f", {plural(totals.slots, 'stage')} at a time" if len(plan.waiting) > 1 else ""
        whole = f"{format_seconds(totals.seconds)}{at_once}, {totals.gpu_hours:,.4g} GPU-hours"
        if totals.dollars:
            whole += f", {format_dollars(totals.dollars)} at ${config.hardware.price_per_gpu_hour:g} a GPU-hour"
        lines.append(whole)
        if len(plan.points) > 1 and plan.unshared_dollars:
            lines.append(f"without sharing stages it would cost {format_dollars(plan.unshared_dollars)}")
    lines += list_uncounted(plan) + list_missing(plan) + ([] if plan.judge is None else [plan.judge.describe()])
    told: dict[str, list[str]] = {}
    for task in plan.tasks:
        if task.key in plan.waiting and task.layout:
            text = " ".join(f"{key}={format_value(value)}" for key, value in visible(task.layout).items())
            told.setdefault(f"{task.node.stage}: {text} ({task.reason})", []).append(task.key)
    return lines + list(told)


def list_uncounted(plan: GraphPlan) -> list[str]:
    """Return what stages that are to run do beside what is planned, each as a sentence."""
    told = [kind_of(task.node.stage).uncounted(task.config) for task in plan.tasks if task.key in plan.waiting]
    return [f"{text}: their time is not counted" for text in dict.fromkeys(told) if text]


def list_missing(plan: GraphPlan) -> list[str]:
    """Return what stages that are to run start from and nobody has made, each as a sentence."""
    planned = {task.node.directory.path for task in plan.tasks}
    found: dict[str, str] = {}
    for task in plan.tasks:
        made = [Path(path).parent for path in task.node.inputs.values() if is_stage_name(Path(path).parent.name)]
        if task.key in plan.waiting:
            found |= {path.name: task.node.stage for path in made if path not in planned and not is_finished_stage(path)}
    return [f"{stage} starts from {name}, which is not done and not planned here" for name, stage in found.items()]


def visible(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a layout that say something: what is off, or as it is by default, is left out, but for ZeRO's
    stage."""
    silent = (False, None, "auto")
    return {key: value for key, value in layout.items() if key.endswith(".stage") or value not in silent}


def format_value(value: Any) -> str:
    """Return a value as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def describe_remaining(remaining: Remaining) -> str:
    """Return in words what a graph of stages is still to take, and what it took; empty where that is not known."""
    told = [] if remaining.seconds is None else [f"about {format_duration(remaining.seconds)} left"]
    if remaining.spent_dollars or remaining.left_dollars:
        told.append(f"{format_dollars(remaining.spent_dollars)} spent")
        told += [] if remaining.left_dollars is None else [f"{format_dollars(remaining.left_dollars)} to come"]
    return ", ".join(told)


def print_stage(task: Task, plan: StagePlan, console: Console) -> None:
    """Print a stage's memory by phase and component, and its seconds by phase and part."""
    phases = list(plan.memory)
    table = Table(title=f"{task.node.stage}: GiB on a GPU with {plan.room / GIB:.0f}", title_justify="left")
    table.add_column("")
    for phase in phases:
        table.add_column(phase, justify="right")
    for name in dict.fromkeys(name for parts in plan.memory.values() for name in parts):
        sizes = [plan.memory[phase].get(name, 0.0) / GIB for phase in phases]
        if any(sizes):
            table.add_row(name, *(f"{size:.2f}" if size else "" for size in sizes))
    table.add_section()
    table.add_row("sum", *(f"{sum(plan.memory[phase].values()) / GIB:.2f}" for phase in phases))
    console.print(table)
    console.print(f"main memory {plan.host / GIB:.1f} GiB a GPU, disk {plan.disk / GIB:.1f} GiB", soft_wrap=True)
    times = Table(title=f"{task.node.stage}: time", title_justify="left")
    times.add_column("")
    for phase in plan.seconds:
        times.add_column(phase, justify="right")
    for name in dict.fromkeys(name for found in plan.seconds.values() for name in found):
        spent = [found.get(name, 0.0) for found in plan.seconds.values()]
        times.add_row(name, *(format_seconds(seconds) if seconds >= 0.5 else "" for seconds in spent))
    times.add_section()
    times.add_row("sum", *(format_seconds(seconds) for seconds in plan.phases.values()))
    console.print(times)
    if (used := describe_mfu(task, plan)) is not None:
        console.print(used, soft_wrap=True)


def describe_mfu(task: Task, plan: StagePlan) -> str | None:
    """Return the model FLOPs utilisation of a stage's steps, and the share of its peak at which a device is planned to
    compute; None where the stage's steps are not known."""
    hardware, dtype = task.config.hardware, task.config.precision.dtype
    peak = getattr(hardware.peak_tflops, dtype) or hardware.peak_tflops.fp32
    stepping = sum(seconds for phase, seconds in plan.phases.items() if phase not in BESIDE_STEPS)
    if plan.flops is None or not stepping:
        return None
    share = load_constants(task.config.plan.constants, task.config.hardware.device).matmul_efficiency
    mfu = plan.flops / (stepping * plan.devices * peak * 1e12)
    return f"steps at {mfu:.0%} MFU of {peak:g} TFLOPS in {dtype}; products of matrices at {share:.0%}"
