"""What lies under a directory: its points, and the stages that they share."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import stage_kinds
from rlhf.catalog.state import ALIVE, ENDED, STATES, most_urgent
from rlhf.config.directories import LATEST
from rlhf.experiment.files import Unreadable, as_mapping, as_text, flatten, read_object, read_yaml
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.report.stage import Stage, SummaryEntry, parse_entry, read_stage

# Points that are named one by one where a stage is shared; more are counted.
NAMED = 3
# A stage directory's name.
NAME = re.compile(r"[\w.-]{1,200}")


class ReportError(Exception):
    """There is nothing to report on; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Point:
    """One configuration and the stages it uses; `config` by dotted keys."""

    name: str
    path: Path
    state: str
    overrides: tuple[str, ...]
    config: dict[str, Any]
    stages: dict[str, Stage]
    notes: tuple[str, ...] = ()

    @property
    def command(self) -> str | None:
        """The command that makes this point again, or finds it done; None where its overrides are not known."""
        return shlex.join(["python", "-m", "rlhf", *self.overrides]) if self.overrides else None

    @property
    def seed(self) -> Any:
        """Return the seed, from the configuration or else from the overrides."""
        typed = [given.partition("=")[2] for given in self.overrides if given.startswith("seed=")]
        return self.config.get("seed", typed[-1] if typed else None)


@dataclass(frozen=True, eq=False)
class Collection:
    """A sweep or a run: its points, and each stage once, in the order of the stages."""

    path: Path
    points: list[Point]
    stages: list[Stage]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    def users(self, stage: Stage) -> list[Point]:
        """Return the points that use a stage."""
        return [point for point in self.points if stage in point.stages.values()]

    def name_users(self, stage: Stage) -> list[str]:
        """Return the points that use a stage: all, a few by name, or the first of them and how many more."""
        names = [point.name for point in self.users(stage)]
        if len(names) == len(self.points) > 1:
            return [f"all {len(names)} points"]
        return names if len(names) <= NAMED else [*names[: NAMED - 1], f"and {len(names) - NAMED + 1} more"]


@dataclass
class PointFiles:
    """A point before its stages are read: its own files, the directory of each stage, and the entries of summary.json."""

    path: Path
    summary: dict[str, Any]
    config: dict[str, Any]
    stages: dict[str, Path] = field(default_factory=dict)
    entries: dict[str, SummaryEntry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def collect(directory: Path, more: Sequence[str] = ()) -> Collection:
    """Read everything under a sweep's, a run's or a point's directory, with the course of `more` metrics than a report
    shows. Raises ReportError if there is no point."""
    found = [read_point_files(path) for path in point_directories(directory)]
    # Each stage is read once, with the newest entry of its points: one that says how it ended goes before others.
    newest: dict[Path, tuple[str, SummaryEntry]] = {}
    for files in found:
        for kind, path in files.stages.items():
            entry = files.entries.get(kind, SummaryEntry())
            known = newest[path][1] if path in newest else None
            if known is None or (entry.state in ENDED, entry.time) > (known.state in ENDED, known.time):
                newest[path] = kind, entry
    stages = {path: read_or_damaged(path, kind, entry, more) for path, (kind, entry) in newest.items()}
    points = [build_point(files, {kind: stages[path] for kind, path in files.stages.items()}) for files in found]
    return Collection(directory.resolve(), points, sorted(stages.values(), key=lambda stage: pipeline_index(stage.kind)))


def read_or_damaged(path: Path, kind: str, entry: SummaryEntry, more: Sequence[str]) -> Stage:
    """Read a stage; it is damaged if not even its directory can be looked into."""
    try:
        return read_stage(path, kind, entry, more)
    except OSError as error:
        return Stage(path, kind, "damaged", f"it cannot be read ({error.strerror})", metrics=entry.metrics)


def pipeline_index(kind: str) -> int:
    """Return the position of a kind of stage in the pipeline; stages of other packages come last."""
    known = list(stage_kinds())
    return known.index(kind) if kind in known else len(known)


def point_directories(directory: Path) -> list[Path]:
    """Return the directory itself if it is a point, else those in it that are; ReportError if there are none."""
    if not directory.is_dir():
        raise ReportError(f"{directory}: {'not a directory' if directory.exists() else 'there is no such directory'}")
    try:
        if (directory / "summary.json").is_file():
            return [directory]
        inside = sorted((path for path in directory.iterdir() if path.is_dir()), key=lambda path: natural_key(path.name))
        found = [path for path in inside if (path / "summary.json").is_file()]
    except OSError as error:
        raise ReportError(f"{directory}: it cannot be read ({error.strerror})") from error
    if not found:
        missing = "no point in it, that is no directory with a summary.json"
        raise ReportError(f"{directory}: {missing}{suggest_directory(directory)}")
    return found


def suggest_directory(directory: Path) -> str:
    """Suggest where the points may be instead; an empty text without a guess."""
    if StageDirectory(directory).begun:
        return "; it is a stage's directory: give the run or the sweep that used it"
    deeper = sorted({str(file.parents[1]) for file in directory.glob("*/*/summary.json") if file.parents[1].name != LATEST})
    deeper += [str(file.parent) for file in sorted(directory.glob("*/*/*/summary.json"))[:1]] if not deeper else []
    return f"; perhaps {' or '.join(deeper[:3])}?" if deeper else ""


def natural_key(name: str) -> list[tuple[int, float, str]]:
    """Return a sort key by which 0.05 precedes 0.3 and 9 precedes 10."""
    parts = re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?|\D+", name)
    return [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]


def read_point_files(path: Path) -> PointFiles:
    """Read a point's own files."""
    notes: list[str] = []
    summary = attempt(read_object, path / "summary.json", notes)
    if summary is None and not notes:
        notes.append("summary.json is gone")
    config = attempt(read_yaml, path / "config.yaml", notes)
    if config is None and not any(note.startswith("config.yaml") for note in notes):
        notes.append("it has no config.yaml; it is known by its overrides only")
    files = PointFiles(path, summary or {}, flatten(config or {}), find_linked_stages(path), notes=notes)
    try:
        written = (path / "summary.json").stat().st_mtime
    except OSError:
        written = 0.0
    for kind, entry in as_mapping(files.summary.get("stages")).items():
        files.entries[kind] = parse_entry(entry, written)
        name = (as_text(as_mapping(entry).get("directory")) or "").rstrip("/").rpartition("/")[2]
        if not NAME.fullmatch(name):
            notes.append(f"summary.json names no directory of its stage {kind}")
        elif kind not in files.stages or files.stages[kind].name != name:
            files.stages[kind] = find_unlinked_stage(path, name)
    return files


def attempt(read: Callable[[Path], dict[str, Any] | None], file: Path, notes: list[str]) -> dict[str, Any] | None:
    """Read a file; None, with a note, if it is damaged."""
    try:
        return read(file)
    except Unreadable as error:
        notes.append(str(error))
        return None


def find_linked_stages(point: Path) -> dict[str, Path]:
    """Return the directories that a point's links lead to, by kind of stage, whether or not they exist yet."""
    try:
        return {StageDirectory(link).stage: link.resolve() for link in sorted((point / "stages").iterdir())}
    except (OSError, RuntimeError):  # none, or a loop of links
        return {}


def find_unlinked_stage(point: Path, name: str) -> Path:
    """Find a stage directory that a point has no link to: beside the runs and sweeps, where it was written."""
    around = [parent / "stages" / name for parent in point.resolve().parents]
    return next((candidate for candidate in around if candidate.is_dir()), around[min(2, len(around) - 1)])


def build_point(files: PointFiles, stages: dict[str, Stage]) -> Point:
    """Return the point with its stages, in the order of the pipeline."""
    given = files.summary.get("overrides")
    overrides = tuple(str(entry) for entry in given) if isinstance(given, list) else ()
    ordered = dict(sorted(stages.items(), key=lambda entry: pipeline_index(entry[0])))
    state = point_state(as_text(files.summary.get("state")), [stage.state for stage in ordered.values()])
    if not files.summary:
        state = "damaged"
    return Point(files.path.resolve().name, files.path, state, overrides, files.config, ordered, tuple(files.notes))


def point_state(noted: str | None, stages: list[str]) -> str:
    """Return a point's state from those of its stages, which are newer than the state that summary.json has `noted`."""
    if stages and all(state == "done" for state in stages):
        return "done"
    if noted in ENDED and not set(stages) & set(ALIVE):
        return str(noted)
    unfinished = [state for state in stages if state in STATES and state != "done"]
    return most_urgent(unfinished, default=noted or "planned")
