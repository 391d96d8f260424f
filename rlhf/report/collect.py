"""What lies under a directory: its points, and the stages that they share."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import stage_kinds
from rlhf.catalog.state import ALIVE, ENDED, STATES, most_urgent
from rlhf.config.directories import LATEST
from rlhf.experiment.files import as_mapping, as_text, flatten, read_object, read_yaml
from rlhf.report.stage import Stage, SummaryEntry, attempt, parse_entry, read_stage

# A stage directory's name.
NAME = re.compile(r"[\w.-]{1,200}")


class ReportError(Exception):
    """There is nothing to report on; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Point:
    """One configuration and the stages it uses; `config` by dotted keys."""

    name: str
    place: Path
    state: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    stages: dict[str, Stage]
    notes: tuple[str, ...] = ()

    @property
    def seed(self) -> Any:
        """The seed, from the configuration or else from the overrides."""
        typed = [given.partition("=")[2] for given in self.overrides if given.startswith("seed=")]
        return self.config.get("seed", typed[-1] if typed else None)


@dataclass(frozen=True, eq=False)
class Collection:
    """A sweep or a run: its points, and each stage once, in the order of the stages."""

    place: Path
    points: list[Point]
    stages: list[Stage]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.place.name

    def users(self, stage: Stage) -> list[Point]:
        """Return the points that use a stage."""
        return [point for point in self.points if stage in point.stages.values()]


@dataclass
class PointFiles:
    """A point before its stages are read: where each is and what summary.json tells of it."""

    place: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    stages: dict[str, Path] = field(default_factory=dict)
    told: dict[str, SummaryEntry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(directory: Path) -> Collection:
    """Everything under a sweep's, a run's or a point's directory. Raises ReportError if there is no point."""
    drafts = [read_draft(place) for place in point_directories(directory)]
    # A stage is read once, with what the most outspoken of its points was told of it.
    told: dict[Path, tuple[str, SummaryEntry]] = {}
    for draft in drafts:
        for kind, place in draft.stages.items():
            news = draft.told.get(kind, SummaryEntry())
            if place not in told or (news.state in ENDED, news.time) > (told[place][1].state in ENDED, told[place][1].time):
                told[place] = kind, news
    read = {place: read_or_damaged(place, kind, news) for place, (kind, news) in told.items()}
    points = [has_finished(draft, {kind: read[place] for kind, place in draft.stages.items()}) for draft in drafts]
    order = sorted(read.values(), key=lambda stage: rank(stage.kind))
    return Collection(directory.resolve(), points, order)


def read_or_damaged(place: Path, kind: str, told: SummaryEntry) -> Stage:
    """Return the stage, damaged if not even its directory can be looked into."""
    try:
        return read_stage(place, kind, told)
    except OSError as error:
        return Stage(place, kind, "damaged", f"it cannot be read ({error.strerror})", figures=told.metrics)


def rank(kind: str) -> int:
    """Return the place of a stage in the pipeline, others last."""
    known = list(stage_kinds())
    return known.index(kind) if kind in known else len(known)


def point_directories(directory: Path) -> list[Path]:
    """Return the directory itself if it is a point, else those in it that are; ReportError if there are none."""
    if not directory.is_dir():
        raise ReportError(f"{directory}: {'not a directory' if directory.exists() else 'there is no such directory'}")
    try:
        if (directory / "summary.json").is_file():
            return [directory]
        inside = sorted(
            (place for place in directory.iterdir() if place.is_dir()), key=lambda place: natural_key(place.name)
        )
        found = [place for place in inside if (place / "summary.json").is_file()]
    except OSError as error:
        raise ReportError(f"{directory}: it cannot be read ({error.strerror})") from error
    if not found:
        raise ReportError(f"{directory}: no point in it, that is no directory with a summary.json{advice(directory)}")
    return found


def advice(directory: Path) -> str:
    """Where the points may be instead."""
    if (directory / "status.json").is_file() or (directory / "result.json").is_file():
        return "; it is a stage's directory: give the run or the sweep that used it"
    deeper = sorted({str(file.parents[1]) for file in directory.glob("*/*/summary.json") if file.parents[1].name != LATEST})
    deeper += [str(file.parent) for file in sorted(directory.glob("*/*/*/summary.json"))[:1]] if not deeper else []
    return f"; perhaps {' or '.join(deeper[:3])}?" if deeper else ""


def natural_key(name: str) -> list[tuple[int, float, str]]:
    """Return a sort key by which 0.05 precedes 0.3 and 9 precedes 10."""
    parts = re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?|\D+", name)
    return [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]


def read_draft(place: Path) -> PointFiles:
    """Return a point's own files."""
    notes: list[str] = []
    summary = attempt(read_object, place / "summary.json", notes)
    if summary is None and not notes:
        notes.append("summary.json is gone")
    config = attempt(read_yaml, place / "config.yaml", notes)
    if config is None and not any(note.startswith("config.yaml") for note in notes):
        notes.append("it has no config.yaml; it is known by its overrides only")
    draft = PointFiles(place, summary or {}, flatten(config or {}), links(place), notes=notes)
    try:
        written = (place / "summary.json").stat().st_mtime
    except OSError:
        written = 0.0
    for kind, entry in as_mapping(draft.summary.get("stages")).items():
        draft.told[kind] = parse_entry(entry, written)
        name = (as_text(as_mapping(entry).get("directory")) or "").rstrip("/").rpartition("/")[2]
        if not NAME.fullmatch(name):
            notes.append(f"summary.json names no directory of its stage {kind}")
        elif kind not in draft.stages or draft.stages[kind].name != name:
            draft.stages[kind] = unlinked_stages(place, name)
    return draft


def links(place: Path) -> dict[str, Path]:
    """Where the point's links lead, by stage, whether or not there is anything yet."""
    try:
        return {link.name.rpartition("-")[0] or link.name: link.resolve() for link in sorted((place / "stages").iterdir())}
    except (OSError, RuntimeError):  # none, or a loop of links
        return {}


def unlinked_stages(place: Path, name: str) -> Path:
    """Return a stage directory that the point has no link to: beside the runs and sweeps, where it was written."""
    around = [parent / "stages" / name for parent in place.resolve().parents]
    return next((candidate for candidate in around if candidate.is_dir()), around[min(2, len(around) - 1)])


def has_finished(draft: PointFiles, stages: dict[str, Stage]) -> Point:
    """Return the point with its stages, in their order."""
    given = draft.summary.get("overrides")
    overrides = tuple(str(entry) for entry in given) if isinstance(given, list) else ()
    ordered = dict(sorted(stages.items(), key=lambda entry: rank(entry[0])))
    state = point_state(as_text(draft.summary.get("state")), [stage.state for stage in ordered.values()])
    if not draft.summary:
        state = "damaged"
    return Point(draft.place.resolve().name, draft.place, state, overrides, draft.config, ordered, tuple(draft.notes))


def point_state(told: str | None, stages: list[str]) -> str:
    """Return a point's state: what its stages say now, which summary.json need not know yet."""
    if stages and all(state == "done" for state in stages):
        return "done"
    if told in ENDED and not set(stages) & set(ALIVE):
        return str(told)
    unfinished = [state for state in stages if state in STATES and state != "done"]
    return most_urgent(unfinished, default=told or "planned")
