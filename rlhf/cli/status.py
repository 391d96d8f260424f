"""`python -m rlhf status [DIR]`: what is done, running, queued and failed.

It reads the files of an output directory alone, so it works from any machine that sees them; where SLURM is, it also asks
that for the jobs that the files name.
"""

import argparse
import json
import math
import os
import reprlib
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf.catalog.state import SETTLED, STATES
from rlhf.cli.status_view import Stage, View, correct_times, heading, sort_key
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal, fit_columns, format_duration, one_line, tell_apart
from rlhf.experiment.files import Unreadable, as_int, as_mapping, as_text, read_object
from rlhf.experiment.stage_directory import StageDirectory, StageState, is_stage_name, parse_planned
from rlhf.experiment.sweep import label_users
from rlhf.planner.remaining import measure_pace, seconds_left

PERIOD_S = 2.0
SQUEUE_PERIOD_S, SQUEUE_TIMEOUT_S = 10.0, 10.0
LARGEST = 1e18

RIGHT = ("step", "rate", "left", "KL", "try", "heard")
# What a narrow terminal does without.
LEAST = ("try", "job", "heard", "rate", "node", "KL", "figure", "point")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL")
FIX = "give an output_root, or a sweep, a run or a stage in it"


class Watch:
    """Looks at a directory again and again; remembers finished stages, and for a while what SLURM said."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.finished: dict[str, Stage] = {}
        self.jobs: dict[str, tuple[str, ...]] | None = None
        self.asked: tuple[float, list[str]] = (-math.inf, [])

    def look(self) -> View:
        """Read the state of all stages now. Raises ConfigError where there is nothing to show."""
        found = find(self.root)
        sweeps = found.sweeps
        stages = []
        for name, path in found.stages.items():
            stage = self.finished.get(name) or read_stage(name, StageDirectory(path), found.entries)
            if stage.state == "done":
                self.finished[name] = stage
            users = [point for points in sweeps.values() for point, names in points.items() if name in names]
            stages.append(replace(stage, points=users))
        return View(sweeps, found.at_once, sorted(correct_times(self.join_jobs(stages)), key=sort_key))

    def join_jobs(self, stages: list[Stage]) -> list[Stage]:
        """Return the stages with SLURM's view of its jobs, for which it is asked every few seconds, or when the jobs are
        others."""
        ids = sorted({s.job for s in stages if s.job is not None and s.state not in (*SETTLED, "damaged")})
        if ids and (ids != self.asked[1] or time.monotonic() - self.asked[0] > SQUEUE_PERIOD_S):
            self.jobs, self.asked = query_squeue(ids), (time.monotonic(), ids)
        return [join_job(s, self.jobs) if s.job in ids and self.jobs is not None else s for s in stages]


@dataclass
class Found:
    """What lies in a directory: the points of each sweep with the names of their stages, how many stages a sweep runs at a
    time, where each stage is, and what summaries say of it."""

    sweeps: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    at_once: dict[str, int] = field(default_factory=dict)
    stages: dict[str, Path] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)


def find(path: Path) -> Found:
    """Find the sweeps and stages of a directory: a stage, a point, a run, a sweep or a whole output directory. Raises
    ConfigError."""
    if not path.is_dir():
        raise ConfigError("DIR", path, "there is no such directory", FIX)
    name, found = path.resolve().name, Found()
    if is_stage_name(name) or StageDirectory(path).begun:
        return Found(stages={name: path})
    # The links of a point may dangle, so what is in `path` itself comes last and replaces them.
    holders = [path]
    for sweep in [path, *children(path / "sweeps")]:
        points = [child for child in children(sweep) if (child / "summary.json").is_file()]
        if points:
            found.sweeps[sweep.resolve().name] = {point.name: list(stages_in(point)) for point in points}
            found.at_once[sweep.resolve().name] = as_int(read_summary(points[0]).get("at_once")) or 1
        holders = [*points, *holders]
    for holder in holders:
        found.stages |= stages_in(holder)
        found.entries |= read_entries(holder)
    if not found.stages and not found.sweeps:
        raise ConfigError("DIR", path, "it holds no stages", FIX)
    return found


def children(path: Path) -> list[Path]:
    """List the entries of a directory, by name; nothing if it is none."""
    return sorted(path.iterdir()) if path.is_dir() else []


def stages_in(path: Path) -> dict[str, Path]:
    """Return the stages that a directory holds or links."""
    return {child.name: child for child in [*children(path), *children(path / "stages")] if is_stage_name(child.name)}


def read_entries(point: Path) -> dict[str, dict[str, Any]]:
    """Return what a point's summary says of its stages, by their names."""
    listed = [as_mapping(stage) for stage in as_mapping(read_summary(point).get("stages")).values()]
    return {Path(str(stage.get("directory"))).name: stage for stage in listed}


def read_summary(point: Path) -> dict[str, Any]:
    """Read a point's summary.json; empty where it cannot be read: links say most of it."""
    try:
        return read_object(point / "summary.json") or {}
    except Unreadable:
        return {}


def read_stage(name: str, directory: StageDirectory, entries: dict[str, dict[str, Any]]) -> Stage:
    """Read a stage from its files; where there are none yet it is planned, or skipped."""
    found, entry = directory.read_state(), entries.get(name, {})
    # A stage that is done may be so for long, on other devices than a later summary plans with.
    planned = directory.planned() or (None if found.name == "done" else parse_planned(entry.get("planned")))
    kind = StageDirectory(Path(name)).stage
    stage = Stage(
        name, str(directory.path), kind, found.name, found.reason or "; ".join(found.notes) or None, planned=planned
    )
    if found.name == "planned" and (state := entry.get("state")) in ("skipped", "pruned"):
        return replace(stage, state=str(state), reason=str(entry.get("reason") or ""))
    if found.name in ("planned", "damaged"):
        return stage
    try:
        return describe_stage(stage, found, directory)
    except Unreadable as error:
        return replace(stage, state="damaged", reason=str(error))


def describe_stage(stage: Stage, found: StageState, directory: StageDirectory) -> Stage:
    """Return a stage with its numbers. Raises Unreadable."""
    status, result, rows = found.status, found.result, last_rows(directory)
    rate, total, step = steps_per_second(rows), number(status, "total"), latest_metrics([*rows[-1:], status], "step")
    age = None if number(status, "heartbeat") is None else found.silence_s
    spent, left = number(result or status, "seconds"), None
    if found.name == "running" and step is not None and total is not None:
        left = seconds_left(stage.planned, step, total, 1 / rate if rate else None)
    finals = result.get("metrics")
    seen = [finals if isinstance(finals, dict) else {}, *rows]
    kind = as_text(status.get("stage")) or stage.stage
    display = directory.display(kind)
    headline = [display.metrics[name] for name in display.headline if name in display.metrics]
    known = next((metric for metric in headline if latest_metrics(seen, metric.name) is not None), None)
    texts: dict[str, Any] = {key: as_text(status[key]) for key in ("host", "job", "alarms") if status.get(key) is not None}
    if known is not None:
        texts |= {"figure": known.name, "label": known.heading, "unit": known.unspoken_unit}
    return replace(
        stage, stage=kind, step=step, total=total, rate=rate, left_s=left, seconds=number(result, "seconds"),
        value=None if known is None else latest_metrics(seen, known.name), kl=latest_metrics(seen, "kl/sequence"),
        attempts=number(status, "attempts"), heartbeat_age_s=age, spent_s=spent, **texts,
    )  # fmt: skip


def last_rows(directory: StageDirectory) -> list[dict[str, Any]]:
    """Return the last lines of the stage's metrics that can be read. Raises Unreadable if none of them can."""
    lines = directory.last_metrics()
    rows = [line for line in lines if line is not None and number(line, "step") is not None]
    if lines and not rows:
        raise Unreadable(f"{directory.metrics_file.name}: none of its last {len(lines)} lines can be read")
    return rows


def number(values: dict[str, Any], key: str) -> float | None:
    """Return a number, or None where there is none or it is not finite; raises Unreadable for anything else."""
    value = values.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise Unreadable(f"{key}: {reprlib.repr(value)} is no number")
    return value if value is not None and -LARGEST < value < LARGEST else None


def latest_metrics(rows: list[dict[str, Any]], name: str) -> float | None:
    """Return the last value of a metric in some rows; None where none has it."""
    return next((value for row in reversed(rows) if (value := number(row, name)) is not None), None)


def steps_per_second(rows: list[dict[str, Any]]) -> float | None:
    """Return the steps per second over the last lines, without pauses."""
    pace = measure_pace([(row["step"], at) for row in rows if (at := number(row, "time")) is not None])
    return 1 / pace if pace else None


def query_squeue(ids: list[str]) -> dict[str, tuple[str, ...]] | None:
    """Ask SLURM for (state, reason, elapsed, nodes) of jobs, by id; None where it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%i|%T|%r|%M|%N"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0:
        lines = [line.strip().split("|") for line in done.stdout.splitlines()]
        return {line[0]: tuple(line[1:]) for line in lines if len(line) == 5}
    if "invalid job id" not in done.stderr.lower():
        return None
    # It has forgotten one of them, and then says nothing of the others either.
    known = [query_squeue([job]) or {} for job in ids] if len(ids) > 1 else []
    return {job: view for answer in known for job, view in answer.items()}


def join_job(stage: Stage, jobs: dict[str, tuple[str, ...]] | None) -> Stage:
    """Return a stage with what SLURM says of its job."""
    state, reason, _, nodes = (jobs or {}).get(str(stage.job), ("", "", "", ""))
    if not state or state in ENDED:
        if stage.state not in ("queued", "starting", "silent"):
            return stage
        what = f"SLURM says {state} of job {stage.job}" if state else f"SLURM no longer knows job {stage.job}"
        now = "silent" if stage.state == "silent" else "lost"
        return replace(stage, state=now, reason=f"{what}; type the same command again")
    if state == "PENDING":
        return replace(stage, state="queued", reason=None if reason == "None" else reason)
    if state == "RUNNING" and stage.state in ("queued", "stopped"):
        return replace(stage, state="starting", host=nodes or stage.host, reason=None)
    return stage if stage.host else replace(stage, host=nodes or None)


def describe_headline(stage: Stage) -> str:
    """Return the metric that says most about a stage, with its unit; nothing where there is none yet."""
    unit = f" {stage.unit}" if stage.unit else ""
    return "" if stage.value is None else f"{stage.label} {stage.value:.3g}{unit}"


def format_row(stage: Stage, apart: Mapping[str, str]) -> dict[str, str]:
    """Return a row of the table, by column; `apart` are all points with what sets each apart."""
    done, rate, age = stage.state == "done", stage.rate, stage.heartbeat_age_s
    left = f"took {format_duration(stage.seconds)}" if stage.seconds is not None else ""
    speed = "" if rate is None or done else f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
    row = {
        "stage": stage.name,
        "state": f"{stage.state}, {stage.reason}" if stage.state == "queued" and stage.reason else stage.state,
        "point": label_users(stage.points, apart) if stage.points and len(apart) > 1 else "",
        "step": "" if stage.step is None else f"{stage.step}/{'?' if stage.total is None else stage.total}",
        "rate": speed,
        "left": left if stage.left_s is None else format_duration(stage.left_s),
        "figure": describe_headline(stage),
        "KL": "" if stage.kl is None else f"{stage.kl:.2f}",
        "node": stage.host or "",
        "job": stage.job or "",
        "try": "" if stage.attempts is None else str(stage.attempts),
        "heard": "" if age is None or done else f"{format_duration(age)} ago",
    }
    return {title: one_line(text) for title, text in row.items()}


def render(view: View, width: int) -> Group:
    """Return the sweeps' lines, the columns that hold anything and fit, and the reasons, which are too long for a
    column."""
    apart = tell_apart([name for points in view.sweeps.values() for name in points])
    rows = [format_row(stage, apart) for stage in view.stages]
    widths = {title: max(len(row[title]) for row in rows) for title in (rows[0] if rows else ())}
    widths = {title: max(size, len(title)) + 2 for title, size in widths.items() if size}
    shown = fit_columns(widths, LEAST, width)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in shown:
        table.add_column(title, no_wrap=True)
        table.columns[-1].justify = "right" if title in RIGHT else "left"
    for stage, row in zip(view.stages, rows, strict=True):
        table.add_row(*(Text(row[title], STATES[stage.state].style if title == "state" else "") for title in shown))
    lines = [
        Text(one_line(heading(sweep, points, view.at_once[sweep], view.stages))) for sweep, points in view.sweeps.items()
    ]
    explained = [stage for stage in view.stages if stage.reason and stage.state != "queued"]
    reasons = [Text(one_line(f"{s.name}: {' '.join(str(s.reason).split())}"), STATES[s.state].style) for s in explained]
    reasons += [Text(one_line(f"{s.name}: alarm {s.alarms}"), "yellow") for s in view.stages if s.alarms]
    return Group(*lines, *([table] if rows else []), *reasons)


def show(watch: Watch, console: Terminal, once: bool) -> None:
    """Print the table once, or on a terminal again and again until nothing more will change."""
    view = watch.look()
    if once or not console.is_terminal:
        console.print(render(view, console.width), soft_wrap=True)
        return
    with Live(render(view, console.width), console=console, auto_refresh=False) as live:
        while any(stage.state not in SETTLED for stage in view.stages):
            time.sleep(PERIOD_S)
            view = watch.look()
            live.update(render(view, console.width), refresh=True)


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rlhf status", description="What is done, running, queued and failed.")
    parser.add_argument(
        "directory", nargs="?", default="outputs", type=Path, metavar="DIR",
        help="an output directory, a sweep, a run, a point or a stage (default: outputs)",
    )  # fmt: skip
    parser.add_argument("--once", action="store_true", help="print the table once, also on a terminal")
    parser.add_argument("--json", action="store_true", help="print a list of stages for machines")
    options = parser.parse_args(arguments)
    watch = Watch(options.directory)
    is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Terminal(width=None if is_known else 240)
    try:
        if options.json:
            print(json.dumps([asdict(stage) for stage in watch.look().stages], indent=2))
        else:
            show(watch, console, options.once)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0
