"""One stage's directory as a report sees it: how far it is, what it measured, what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.catalog.display import Display
from rlhf.catalog.health import FOLLOWED, Alarm, find_alarms
from rlhf.catalog.state import ALIVE, ENDED
from rlhf.config.terminal import format_seconds
from rlhf.experiment.files import Unreadable, as_float, as_floats, as_int, as_mapping, as_text, read_lines
from rlhf.experiment.stage_directory import StageDirectory, StageState, parse_planned
from rlhf.planner.remaining import Planned
from rlhf.report.statistics import Array


@dataclass(frozen=True, eq=False)
class Series:
    """Metrics over steps: `steps` ascending, and as many values of each metric, NaN where one was not logged."""

    steps: Array = field(default_factory=lambda: np.empty(0))
    values: dict[str, Array] = field(default_factory=dict)

    def get(self, name: str) -> Array:
        """Return a metric's values, NaN if it was never logged."""
        return self.values.get(name, np.full(len(self.steps), np.nan))


@dataclass(frozen=True)
class Lengths:
    """How many training prompts and responses have a length, in steps of `width` tokens from 0."""

    width: int
    prompt: tuple[float, ...]
    response: tuple[float, ...]


@dataclass(frozen=True)
class SummaryEntry:
    """The entry of a stage in a point's summary.json, which was written at unix second `time`."""

    state: str | None = None
    reason: str | None = None
    log: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    time: float = 0.0
    planned: Planned | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage as a report shows it: `state` is one of rlhf/catalog/state.py, `seconds` is what it took so far, `planned`
    what it was to take, `notes` say what is wrong with its files, and `tracked_at` is the address of its run at W&B."""

    path: Path
    kind: str
    state: str
    reason: str | None = None
    log: str | None = None
    seconds: float | None = None
    step: int | None = None
    total: int | None = None
    attempts: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    series: Series = field(default_factory=Series)
    samples: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    display: Display = field(default_factory=Display)
    planned: Planned | None = None
    lengths: Lengths | None = None
    tracked_at: str | None = None

    @cached_property
    def alarms(self) -> list[Alarm]:
        """The alarms that its metrics raise."""
        return find_alarms(self.series.steps.astype(int).tolist(), self.series.values)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name


def read_stage(path: Path, kind: str, entry: SummaryEntry, more: Sequence[str] = ()) -> Stage:
    """Read a stage from its directory; where the directory does not say it, from the `entry` of a point's summary.json.
    `more` are metrics to follow beside those that every report shows."""
    directory, found = StageDirectory(path), StageDirectory(path).read_state()
    notes = list(found.notes)
    try:
        environment = directory.environment()
    except Unreadable as error:
        environment = {}
        notes.append(str(error))
    if found.name == "done":
        entry = SummaryEntry()  # a result speaks for itself
    state, reason = choose_state(found, entry)
    display = directory.display(kind)
    return Stage(
        path,
        kind,
        state,
        reason,
        find_log(path, entry) if state != "done" else None,
        as_float((found.result or found.status).get("seconds")),
        as_int(found.status.get("step")),
        as_int(found.status.get("total")),
        as_int(found.status.get("attempts")),
        as_floats(found.result.get("metrics")) or entry.metrics,
        read_series(directory, state, followed_metrics(display, more), notes),
        read_samples(directory, state, notes),
        environment,
        tuple(notes),
        display,
        directory.planned() or (None if found.result else entry.planned),
        read_lengths(directory.data()),
        address if (address := as_text(found.status.get("wandb"))) and address.startswith("https://") else None,
    )


def read_lengths(data: dict[str, Any]) -> Lengths | None:
    """Return the lengths of the records that a stage reads; None where nothing says them."""
    found = as_mapping(as_mapping(data.get("train")).get("histogram"))
    width, parts = as_int(found.get("width")), [found.get(part) for part in ("prompt", "response")]
    if width is None or width < 1 or not all(isinstance(part, list) for part in parts):
        return None
    prompt, response = (tuple(as_float(count) or 0.0 for count in part or ()) for part in parts)
    return Lengths(width, prompt, response) if prompt or response else None


def choose_state(found: StageState, entry: SummaryEntry) -> tuple[str, str | None]:
    """Return a stage's state and its reason. Its directory knows best, except where there is none, and where a process died
    without a word: then the `entry` of a point's summary does."""
    if found.name == "planned":
        if entry.state == "done":
            return "damaged", "its directory is gone; the metrics are those of summary.json"
        return entry.state or "planned", entry.reason
    beat = as_float(found.status.get("heartbeat")) or 0.0
    if found.name in (*ALIVE, "silent") and entry.state in ENDED and entry.time >= beat:
        return str(entry.state), entry.reason
    if found.name == "silent":
        silence = found.silence_s
        told = (
            "no heartbeat"
            if silence is None
            else f"no heartbeat for {format_seconds(silence)}: its process is dead or hangs"
        )
        return "silent", told
    return found.name, found.reason or (entry.reason if entry.state == found.name else None)


def followed_metrics(display: Display, more: Sequence[str] = ()) -> list[str]:
    """Return the metrics whose course a report shows, averages or adds up, and `more`; a stage logs some sixty, over maybe
    many thousands of steps."""
    followed = [metric for metric in display.metrics.values() if metric.axis or metric.speed or metric.final]
    names = [name for metric in followed for name in (metric.name, metric.per) if name]
    alarming = [name for name in FOLLOWED if name in display.metrics]
    return list(dict.fromkeys(["time", "throughput/tflops_per_gpu", *names, *alarming, *more]))


def read_series(directory: StageDirectory, state: str, followed: list[str], notes: list[str]) -> Series:
    """Read the followed metrics of all steps; of a step that was logged twice, as after a restart, the last line counts."""
    rows: dict[int, dict[str, Any]] = {}
    for row in read_good_lines(directory.metrics_file, state, notes):
        step = as_int(row.get("step"))
        if step is not None:
            rows[step] = {name: row[name] for name in followed if name in row}
    steps = sorted(rows)
    names = {name for row in rows.values() for name in row}
    columns = {name: as_column([rows[step].get(name) for step in steps]) for name in sorted(names)}
    return Series(np.array(steps, dtype=np.float64), columns)


def as_column(values: list[Any]) -> Array:
    """Return values as a column of numbers, NaN for what is no number or is not finite."""
    if set(map(type, values)) <= {float, type(None)}:  # as it should be
        column = np.array(values, dtype=np.float64)
        column[~np.isfinite(column)] = np.nan
        return column
    known = map(as_float, values)
    return np.array([np.nan if value is None else value for value in known], dtype=np.float64)


def read_samples(directory: StageDirectory, state: str, notes: list[str]) -> list[dict[str, Any]]:
    """Read the rows of the last evaluation."""
    last = -1
    kept: list[dict[str, Any]] = []
    for row in read_good_lines(directory.samples_file, state, notes):
        step = as_int(row.get("step"))
        if step is None or step < last:
            continue
        if step > last:
            kept, last = [], step
        kept.append(row)
    return kept


def read_good_lines(file: Path, state: str, notes: list[str]) -> list[dict[str, Any]]:
    """Read the lines that are not damaged, with a note about the others; a stage that runs may be writing its last line."""
    try:
        lines = list(read_lines(file))
    except Unreadable as error:
        notes.append(str(error))
        return []
    cut = bool(lines) and lines[-1] is None
    damaged = lines.count(None) - cut
    if cut and state not in ALIVE:
        notes.append(f"the last line of {file.name} is cut off and was left out")
    if damaged:
        notes.append(f"{damaged} of {len(lines)} lines of {file.name} are damaged and were left out")
    return [line for line in lines if line is not None]


def find_log(path: Path, entry: SummaryEntry) -> str | None:
    """Find the log that tells what happened: the one that the point names, else the stage's own."""
    if entry.log is not None:
        own = path / "logs" / Path(entry.log).name
        return str(own) if own.is_file() else entry.log
    logs = sorted((path / "logs").glob("*.log")) if path.is_dir() else []
    return str(logs[0]) if logs else None


def parse_entry(entry: Any, written: float) -> SummaryEntry:
    """Parse an entry of summary.json, which was written at unix second `written`; damaged values are left out."""
    known = as_mapping(entry)
    return SummaryEntry(
        as_text(known.get("state")),
        as_text(known.get("reason")),
        as_text(known.get("log")),
        as_floats(known.get("metrics")),
        written,
        parse_planned(known.get("planned")),
    )
