"""The directory of a stage, `outputs/stages/<stage>-<first 12 of the fingerprint>/`: its files are named, read and written
here alone, and here is decided which state they tell.

A stage is done if and only if result.json is there. Whoever reads may find any file missing, cut off, damaged, or written
by another release.
"""

import re
import reprlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rlhf.catalog.display import DISPLAY_FILE, Display, display_of, from_json, is_in_package, to_json
from rlhf.catalog.metric import SPEED
from rlhf.catalog.stage import stage_kinds
from rlhf.catalog.state import WRITTEN
from rlhf.config.directories import PAGE, RESULT_FILE, is_finished_stage
from rlhf.config.secrets import mask_values
from rlhf.experiment import lock
from rlhf.experiment.files import (
    Unreadable,
    as_float,
    as_floats,
    as_int,
    as_mapping,
    as_text,
    read_last_lines,
    read_lines,
    read_object,
)
from rlhf.experiment.integrity import MANIFEST, describe_models, integrity_error
from rlhf.experiment.store import write_json
from rlhf.planner.remaining import Planned

# What a new attempt leaves where it is: the state, the lock, the logs, batches that were put aside to be looked at, and the
# answers of an evaluation, which goes on after them.
KEPT = ("status.json", "lock", "logs", "nonfinite", "answers.jsonl")
# And what grew with its checkpoints, if there are any.
RESUMED = ("checkpoints", "answers", "metrics.jsonl", "samples.jsonl", "wandb", "tensorboard")
# A running stage renews its heartbeat every few seconds; one that is silent for longer is dead or hangs.
SILENT_AFTER_S = 60.0
# How a stage of another package is shown that says nothing of it: names stand for labels.
UNKNOWN = Display({metric.name: metric for metric in SPEED})


@dataclass(frozen=True)
class Result:
    """The content of result.json; `seconds` is the stage's wall time, over all attempts."""

    stage: str
    fingerprint: str
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class StageState:
    """What status.json and result.json say together.

    Attributes:
        name: a state of rlhf/catalog/state.py.
        reason: why the stage is in it: the stage's own words, or what is wrong with its files.
        status: the content of status.json, empty where it cannot be read.
        result: the content of result.json, empty where the stage is not done.
        notes: what is wrong with a file though the state is known.
    """

    name: str
    reason: str | None = None
    status: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def silence_s(self) -> float | None:
        """Seconds since the last heartbeat; None without a heartbeat."""
        beat = as_float(self.status.get("heartbeat"))
        return None if beat is None else max(0.0, time.time() - beat)


@dataclass(frozen=True)
class StageDirectory:
    """One stage's artifact."""

    path: Path

    @property
    def stage(self) -> str:
        """The stage that the directory's name begins with."""
        return self.path.name.rpartition("-")[0] or self.path.name

    @property
    def model(self) -> Path:
        """The directory that `transformers` loads."""
        return self.path / "model"

    @property
    def data_set(self) -> Path:
        """The directory of a data set that the stage makes."""
        return self.path / "data"

    @property
    def spec_file(self) -> Path:
        """What the workers read: rlhf/experiment/spec.py."""
        return self.path / "spec.json"

    @property
    def metrics_file(self) -> Path:
        """Return the path of the metrics, one JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def samples_file(self) -> Path:
        """Prompts with responses, one JSON object per line."""
        return self.path / "samples.jsonl"

    @property
    def page(self) -> Path:
        """The page of what the stage has found, of a kind that writes one."""
        return self.path / PAGE

    @property
    def begun(self) -> bool:
        """Whether the path is the directory of a stage that was begun."""
        return (self.path / "status.json").is_file() or self.done

    @property
    def done(self) -> bool:
        """Whether the stage has finished."""
        return is_finished_stage(self.path)

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of result.json; None if there is none. Raises Unreadable."""
        return read_filled(self.path / RESULT_FILE)

    def result(self) -> Result:
        """Return the finished stage's result. Raises ValueError, which names the file, if it is damaged."""
        file = self.path / RESULT_FILE
        try:
            found = read_object(file)
        except Unreadable as error:
            raise ValueError(f"{file} cannot be read ({error})") from error
        if found is None or (problem := result_problem(found)):
            raise ValueError(f"{file} cannot be read ({'it is gone' if found is None else problem})")
        return Result(**found)

    def status(self) -> dict[str, Any]:
        """Return the last status, or an empty dict where there is none that can be read; its values are texts and
        numbers."""
        try:
            found = read_object(self.path / "status.json") or {}
        except Unreadable:
            return {}
        return {key: value for key, value in found.items() if value is None or isinstance(value, str | int | float)}

    def counted(self, name: str) -> int:
        """Return a count in the status, 0 where there is none."""
        return as_int(self.status().get(name)) or 0

    def read_state(self) -> StageState:
        """Find out how far the stage is, whatever its files hold."""
        try:
            if result := self.read_result():
                try:
                    return StageState("done", None, self.read_status(), result)
                except Unreadable as error:
                    return StageState("done", None, {}, result, notes=(str(error),))
            status = self.read_status()
        except Unreadable as error:
            return StageState("damaged", str(error))
        if not status:
            return StageState("damaged", "status.json: it is missing") if self.path.exists() else StageState("planned")
        return read_unfinished(status)

    def read_status(self) -> dict[str, Any]:
        """Return the content of status.json; empty if there is none. Raises Unreadable."""
        return read_filled(self.path / "status.json") or {}

    def metrics(self) -> Iterator[dict[str, Any] | None]:
        """Yield the lines of metrics.jsonl, None for a damaged line. Raises Unreadable."""
        return read_lines(self.metrics_file)

    def last_metrics(self) -> list[dict[str, Any] | None]:
        """Return the last lines of metrics.jsonl, None for a damaged line. Raises Unreadable."""
        return read_last_lines(self.metrics_file)

    def samples(self) -> Iterator[dict[str, Any] | None]:
        """Yield the lines of samples.jsonl, None for a damaged line. Raises Unreadable."""
        return read_lines(self.samples_file)

    def environment(self) -> dict[str, Any]:
        """Return what the stage was made with; empty if nothing says so. Raises Unreadable."""
        return read_object(self.path / "environment.json") or {}

    def data(self) -> dict[str, Any]:
        """Return what was counted of the records that the stage reads; empty if nothing says so, or its file is damaged."""
        try:
            return read_object(self.path / "data.json") or {}
        except Unreadable:
            return {}

    def planned(self) -> Planned | None:
        """Return what was planned of the stage when it was launched; None where nothing was, or its file is damaged."""
        try:
            return parse_planned(read_object(self.path / "plan.json"))
        except Unreadable:
            return None

    def display(self, stage: str) -> Display:
        """Return how the results of this `stage` are shown: as this package says, or for another's stage as its directory
        does."""
        if is_in_package(stage):
            return display_of(stage)
        try:
            found = read_object(self.path / DISPLAY_FILE)
        except Unreadable:
            found = None
        return from_json(found) if found is not None else UNKNOWN

    def damage(self) -> str | None:
        """Return what is wrong with a finished stage's model, or data set, as far as it can be told in a second; None if
        nothing is."""
        return integrity_error(self.data_set if self.data_set.is_dir() else self.model)

    @property
    def prune_file(self) -> Path:
        """Return the path of the file that a search writes to have a running stage save and leave, with the reason in it. A
        new attempt removes it."""
        return self.path / "prune"

    def check_lock(self) -> None:
        """Make sure that the stage is still this process's to write. Raises LockLost."""
        lock.check(self.path)

    @property
    def seconds(self) -> float:
        """Wall time that the stage took so far, by its status; 0 where that does not tell."""
        return as_float(self.status().get("seconds")) or 0.0

    def set_status(self, **changes: Any) -> None:
        """Change some fields of status.json and renew its heartbeat. It is written anew every few seconds, so nobody waits
        until it has reached the disk. Raises LockLost."""
        self.check_lock()
        status = {**self.status(), **mask_values(changes), "heartbeat": time.time()}
        write_json(self.path / "status.json", status, durable=False)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Note what the stage is made with. Raises LockLost."""
        self.check_lock()
        write_json(self.path / "environment.json", mask_values(environment))

    def write_data(self, counted: dict[str, Any]) -> None:
        """Note what was counted of the records that the stage reads. Raises LockLost."""
        self.check_lock()
        write_json(self.path / "data.json", counted)

    def write_planned(self, planned: dict[str, Any]) -> None:
        """Note what is planned of the stage, unless that is empty."""
        if planned:
            write_json(self.path / "plan.json", planned)

    def write_display(self, stage: str) -> None:
        """Note how the results of a `stage` of another package are shown; readers need not have that package."""
        if not is_in_package(stage):
            write_json(self.path / DISPLAY_FILE, to_json(display_of(stage)))

    def finish(self, result: Result) -> None:
        """Note the checksums of what was saved, and declare the stage done; the last thing that is written. Raises
        LockLost."""
        self.check_lock()
        write_json(self.path / MANIFEST, describe_models(self.path))
        self.check_lock()
        write_json(self.path / RESULT_FILE, result.__dict__)

    def clear(self) -> None:
        """Remove what an unfinished attempt left, all but what is KEPT or can be resumed."""
        kept = KEPT + (RESUMED if (self.path / "checkpoints").is_dir() else ())
        for child in self.path.iterdir() if self.path.is_dir() else ():
            if child.name in kept:
                continue
            if child.is_dir():
                shutil.rmtree(child)
            else:
                child.unlink(missing_ok=True)


def stage_path(output_root: str, stage: str, fingerprint: str) -> Path:
    """Return the path of the directory of a stage."""
    return Path(output_root) / "stages" / f"{stage}-{fingerprint[:12]}"


@cache
def name_pattern() -> re.Pattern[str]:
    """Return the pattern of the names of directories of this package's stages, and of those that are named by a dotted
    path. Stages import this module, so it looks for them when it is asked."""
    return re.compile(rf"({'|'.join(stage_kinds())}|\w+(\.\w+)+)-[0-9a-f]{{12}}")


def is_stage_name(name: str) -> bool:
    """Whether a directory's name is that of a stage's directory."""
    return name_pattern().fullmatch(name) is not None


def find_stages(output_root: Path) -> list[StageDirectory]:
    """Return the stages that were launched under an output_root, by name."""
    return [StageDirectory(file.parent) for file in sorted((output_root / "stages").glob("*/spec.json"))]


def read_filled(file: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no file. Raises Unreadable, for an empty object too."""
    found = read_object(file)
    if found is not None and not found:
        raise Unreadable(f"{file.name} holds nothing")
    return found


def read_unfinished(status: dict[str, Any]) -> StageState:
    """Return the state of a stage without a result, from its status."""
    name = status.get("state")
    if name not in WRITTEN:
        return StageState("damaged", f"status.json: there is no state {reprlib.repr(name)}", status)
    if name == "done":
        return StageState("damaged", f"{RESULT_FILE}: it is missing, although status.json says done", status)
    found = StageState(str(name), as_text(status.get("reason")), status)
    silent = found.silence_s is None or found.silence_s > SILENT_AFTER_S
    return replace(found, name="silent") if name == "running" and silent else found


def parse_planned(found: Any) -> Planned | None:
    """Return what was planned of a stage, from plan.json or from a point's summary.json; None if that holds something
    else."""
    known = as_mapping(found)
    devices, price, memory = as_int(known.get("devices")), as_float(known.get("price")), as_float(known.get("gib_per_gpu"))
    if devices is None or price is None or memory is None:
        return None
    phases, evaluations = as_floats(known.get("phases")), as_int(known.get("evaluations")) or 0
    steps, seconds, answers = as_int(known.get("steps")), as_float(known.get("seconds")), as_int(known.get("answers")) or 2
    return Planned(steps, seconds, phases, evaluations, memory, devices, price, answers)


def result_problem(found: dict[str, Any]) -> str | None:
    """Return what is wrong with the content of a result.json; None if nothing is."""
    kinds = {"stage": str, "fingerprint": str, "seconds": int | float, "metrics": dict}
    if set(found) != set(kinds):
        return f"it does not hold exactly {', '.join(kinds)}"
    values = [(key, found[key], kind) for key, kind in kinds.items()]
    values += [(key, value, int | float) for key, value in as_mapping(found["metrics"]).items()]
    return next((f"{key} is of the wrong type" for key, value, kind in values if not is_result_of(value, kind)), None)


def is_result_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, a number being one that a float can hold."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    return not isinstance(value, int) or abs(value) < 2**1000
