"""The directory of a stage: what is in it, when it is done, and who may write it.

A file appears whole or not at all. A stage is done if and only if result.json is there.
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.secrets import mask_values
from rlhf.experiment import lock
from rlhf.experiment.files import Unreadable, as_float, as_int, as_mapping, read_object
from rlhf.experiment.integrity import MANIFEST, describe_models, integrity_error


def write_atomic(path: Path, text: str, durable: bool = True, private: bool = False) -> None:
    """Replace a file's content in one step. When this returns it has reached the disk, unless it need not be `durable`.
    A `private` file is never readable by others, not even while it is written. Raises OSError, which names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w", opener=open_private if private else None) as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is not None and error.filename is None:  # a disk that is full says no more than that
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if durable:
        sync_directory(path.parent)


def open_private(path: str, flags: int) -> int:
    """Open a new file that its owner alone can read, as `open` asks for it."""
    return os.open(path, flags | os.O_EXCL, 0o600)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory have reached the disk: else a file that was renamed may be gone, or be the old
    one, after a loss of power."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and write names through anyway
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any, durable: bool = True, private: bool = False) -> None:
    """Write a JSON file in one step."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=True) + "\n", durable, private)


# What a new attempt at a stage leaves where it is: whose turn it is, what was said, what was put aside to be looked at.
KEPT = ("status.json", "lock", "logs", "nonfinite")
# And what grew with its checkpoints, if there are any.
RESUMED = ("checkpoints", "metrics.jsonl", "samples.jsonl", "wandb", "tensorboard")


@dataclass(frozen=True)
class Result:
    """What a finished stage says of itself; `seconds` is its wall time, over all attempts."""

    stage: str
    fingerprint: str
    seconds: float
    metrics: dict[str, float]


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


@dataclass(frozen=True)
class StageDirectory:
    """One stage's artifact, `outputs/stages/<stage>-<first 12 of the fingerprint>/`."""

    path: Path

    @property
    def model(self) -> Path:
        """What `transformers` loads."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Prompts with responses, one JSON object per line."""
        return self.path / "samples.jsonl"

    @property
    def done(self) -> bool:
        """Whether the stage has finished."""
        return (self.path / "result.json").is_file()

    def result(self) -> Result:
        """Return the finished stage's result. Raises ValueError, which names the file, if it is damaged."""
        file = self.path / "result.json"
        try:
            found = read_object(file)
        except Unreadable as error:
            raise ValueError(f"{file} cannot be read ({error})") from error
        if found is None or (problem := result_problem(found)):
            raise ValueError(f"{file} cannot be read ({'it is gone' if found is None else problem})")
        return Result(**found)

    def damage(self) -> str | None:
        """Return what is wrong with a finished stage's model, as far as it can be told in a second; None if nothing is."""
        return integrity_error(self.model)

    def check_lock(self) -> None:
        """Make sure that the stage is still this process's to write. Raises LockLost."""
        lock.check(self.path)

    def finish(self, result: Result) -> None:
        """Note the checksums of what was saved, and declare the stage done; the last thing that is written. Raises
        LockLost."""
        self.check_lock()
        write_json(self.path / MANIFEST, describe_models(self.path))
        self.check_lock()
        write_json(self.path / "result.json", result.__dict__)

    def status(self) -> dict[str, Any]:
        """Return the last known state, or an empty dict where there is none that can be read; its values are texts and
        numbers."""
        try:
            found = read_object(self.path / "status.json") or {}
        except Unreadable:
            return {}
        return {key: value for key, value in found.items() if value is None or isinstance(value, str | int | float)}

    def counted(self, name: str) -> int:
        """Return a count in the status, 0 where there is none."""
        return as_int(self.status().get(name)) or 0

    @property
    def seconds(self) -> float:
        """Wall time that the stage took so far, by its status; 0 where that does not tell."""
        return as_float(self.status().get("seconds")) or 0.0

    def set_status(self, **changes: Any) -> None:
        """Change some fields of status.json and renew its heartbeat. It is written anew every few seconds, so nobody waits
        until it has reached the disk. Raises LockLost."""
        self.check_lock()
        write_json(
            self.path / "status.json", {**self.status(), **mask_values(changes), "heartbeat": time.time()}, durable=False
        )

    def clear(self) -> None:
        """Remove what an unfinished attempt left, all but what is KEPT or can be resumed."""
        kept = KEPT + (RESUMED if (self.path / "checkpoints").is_dir() else ())
        for place in self.path.iterdir() if self.path.is_dir() else ():
            if place.name in kept:
                continue
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
