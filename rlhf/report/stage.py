"""One stage's directory as a report sees it: how far it is, what it measured, what is wrong with it."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.catalog.display import Display
from rlhf.catalog.state import ALIVE, ENDED
from rlhf.experiment.files import Unreadable, as_float, as_floats, as_int, as_mapping, as_text, read_lines, read_object
from rlhf.experiment.stage_files import parse_planned, read_display, read_planned
from rlhf.planner.remaining import Planned
from rlhf.report.statistics import Array

# A running stage renews its heartbeat every few seconds; one that is silent for longer is dead or hangs.
SILENCE_S = 60.0


@dataclass(frozen=True, eq=False)
class Series:
    """Metrics over steps: `steps` ascending, and as many values of each metric, NaN where one was not logged."""

    steps: Array = field(default_factory=lambda: np.empty(0))
    values: dict[str, Array] = field(default_factory=dict)

    def get(self, name: str) -> Array:
        """Return a metric's values, NaN if it was never logged."""
        return self.values.get(name, np.full(len(self.steps), np.nan))


@dataclass(frozen=True)
class SummaryEntry:
    """What a point's summary.json, written at unix second `time`, says of one of its stages."""

    state: str | None = None
    reason: str | None = None
    log: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    time: float = 0.0
    planned: Planned | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage's directory. `state` is that of status.json, or `silent` without a heartbeat, or `damaged` if files are;
    `seconds` is what it took so far, `planned` what it was to take."""

    place: Path
    kind: str
    state: str
    reason: str | None = None
    log: str | None = None
    seconds: float | None = None
    step: int | None = None
    total: int | None = None
    attempts: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    series: Series = field(default_factory=Series)
    samples: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    display: Display = field(default_factory=Display)
    planned: Planned | None = None

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.place.name


def read_stage(place: Path, kind: str, told: SummaryEntry) -> Stage:
    """Return a stage from its directory and, where that is silent, from what a point was told of it."""
    notes: list[str] = []
    status = attempt(read_object, place / "status.json", notes)
    result = attempt(read_object, place / "result.json", notes)
    environment = attempt(read_object, place / "environment.json", notes)
    state, reason = stage_state(place, status, result is not None, told)
    display = read_display(place, kind)
    series, samples = read_series(place, state, display, notes), read_samples(place, state, notes)
    if result is not None:
        told = SummaryEntry()  # a result speaks for itself
    known = status or {}
    return Stage(
        place,
        kind,
        state,
        reason,
        log_file(place, told) if state != "done" else None,
        as_float((result or known).get("seconds")),
        as_int(known.get("step")),
        as_int(known.get("total")),
        as_int(known.get("attempts")),
        as_floats((result or {}).get("metrics")) or told.metrics,
        series,
        samples,
        environment or {},
        tuple(notes),
        display,
        read_planned(place) or (None if result else told.planned),
    )


def attempt(read: Any, file: Path, notes: list[str]) -> dict[str, Any] | None:
    """Return what `read` makes of the file; None with a note if it is damaged."""
    try:
        found: dict[str, Any] | None = read(file)
    except Unreadable as error:
        notes.append(str(error))
        return None
    return found


def stage_state(place: Path, status: dict[str, Any] | None, done: bool, told: SummaryEntry) -> tuple[str, str | None]:
    """Return a stage's state and its reason, from its directory or, where there is none, from what a point was told."""
    if done:
        return "done", None
    if not place.is_dir():
        if told.state == "done":
            return "damaged", "its directory is gone; the figures are those of summary.json"
        return told.state or "planned", told.reason
    if status is None:
        return "damaged", "it has no readable status.json and no result.json"
    return is_unfinished(status, told)


def is_unfinished(status: dict[str, Any], told: SummaryEntry) -> tuple[str, str | None]:
    """State and reason of a stage without a result. Its status knows best, but for a process that died without a word."""
    state = as_text(status.get("state")) or "unknown"
    beat = as_float(status.get("heartbeat")) or 0.0
    if state == "done":
        return "damaged", "status.json says done, but there is no readable result.json"
    if state in ALIVE and told.state in ENDED and told.time >= beat:
        return str(told.state), told.reason
    silent = time.time() - beat
    if state == "running" and silent > SILENCE_S:
        return "silent", f"no heartbeat for {duration(silent)}: its process is dead or hangs" if beat else "no heartbeat"
    return state, as_text(status.get("reason")) or (told.reason if told.state == state else None)


def followed_metrics(display: Display) -> list[str]:
    """Return the metrics whose course a report shows or averages; a stage logs some sixty, over maybe many thousands of
    steps."""
    followed = [metric for metric in display.metrics.values() if metric.axis or metric.speed]
    return ["time", *(name for metric in followed for name in (metric.name, metric.per) if name)]


def read_series(place: Path, state: str, display: Display, notes: list[str]) -> Series:
    """Return the followed metrics; of a step that was logged twice, as after a restart, the last."""
    followed = followed_metrics(display)
    rows: dict[int, dict[str, Any]] = {}
    for row in whole_lines(place / "metrics.jsonl", state, notes):
        step = as_int(row.get("step"))
        if step is not None:
            rows[step] = {name: row[name] for name in followed if name in row}
    steps = sorted(rows)
    names = {name for row in rows.values() for name in row}
    columns = {name: as_column([rows[step].get(name) for step in steps]) for name in sorted(names)}
    return Series(np.array(steps, dtype=np.float64), columns)


def as_column(values: list[Any]) -> Array:
    """Return the numbers among some values, NaN for what is none or is not finite."""
    if set(map(type, values)) <= {float, type(None)}:  # as it should be
        column = np.array(values, dtype=np.float64)
        column[~np.isfinite(column)] = np.nan
        return column
    known = map(as_float, values)
    return np.array([np.nan if value is None else value for value in known], dtype=np.float64)


def read_samples(place: Path, state: str, notes: list[str]) -> list[dict[str, Any]]:
    """Return the rows of the last evaluation."""
    last = -1
    kept: list[dict[str, Any]] = []
    for row in whole_lines(place / "samples.jsonl", state, notes):
        step = as_int(row.get("step"))
        if step is None or step < last:
            continue
        if step > last:
            kept, last = [], step
        kept.append(row)
    return kept


def whole_lines(file: Path, state: str, notes: list[str]) -> list[dict[str, Any]]:
    """Return the lines that can be read, with a note about others; a stage that runs may be writing its last one."""
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


def log_file(place: Path, told: SummaryEntry) -> str | None:
    """Where to read what happened: the log that the point names, else the stage's own."""
    if told.log is not None:
        own = place / "logs" / Path(told.log).name
        return str(own) if own.is_file() else told.log
    logs = sorted((place / "logs").glob("*.log")) if place.is_dir() else []
    return str(logs[0]) if logs else None


def duration(seconds: float) -> str:
    """Seconds for people."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def parse_entry(entry: Any, written: float) -> SummaryEntry:
    """Return a stage's entry of summary.json."""
    known = as_mapping(entry)
    return SummaryEntry(
        as_text(known.get("state")),
        as_text(known.get("reason")),
        as_text(known.get("log")),
        as_floats(known.get("metrics")),
        written,
        parse_planned(known.get("planned")),
    )
