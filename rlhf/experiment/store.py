"""The directory of a stage: what is in it, when it is done, and who may write it.

A file appears whole or not at all. A stage is done if and only if result.json is there.
"""

import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.experiment import lock


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's content in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one step."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


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
        """The finished stage's result. Raises ValueError if it is damaged."""
        try:
            return Result(**json.loads((self.path / "result.json").read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path / 'result.json'} cannot be read ({error})") from error

    def damage(self) -> str | None:
        """What is wrong with a finished stage's model, as far as its files' names and sizes tell; None if nothing is."""
        if not (self.model / "config.json").is_file() and not (self.model / "adapter_config.json").is_file():
            return f"{self.model} has no config.json"
        weights = sorted(self.model.glob("*.safetensors"))
        if not weights:
            return f"{self.model} has no weights"
        if missing := next((name for name in shards(self.model) if not (self.model / name).is_file()), None):
            return f"{self.model} has no {missing}"
        return next((f"{file} is cut off" for file in weights if file.stat().st_size < safetensors_size(file)), None)

    def check_lock(self) -> None:
        """Make sure that the stage is still this process's to write. Raises LockLost."""
        lock.check(self.path)

    def finish(self, result: Result) -> None:
        """Declare the stage done; the last thing that is written. Raises LockLost."""
        self.check_lock()
        write_json(self.path / "result.json", result.__dict__)

    def status(self) -> dict[str, Any]:
        """The last known state, or an empty dict where there is none that can be read."""
        try:
            return dict(json.loads((self.path / "status.json").read_text()))
        except (OSError, TypeError, ValueError):
            return {}

    def set_status(self, **changes: Any) -> None:
        """Change some fields of status.json and renew its heartbeat. Raises LockLost."""
        self.check_lock()
        write_json(self.path / "status.json", {**self.status(), **changes, "heartbeat": time.time()})

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


def shards(model: Path) -> list[str]:
    """The files that a model's weights are split into, if they are. Raises ValueError if their index is damaged."""
    file = model / "model.safetensors.index.json"
    try:
        return sorted(set(json.loads(file.read_text())["weight_map"].values())) if file.is_file() else []
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error


def safetensors_size(file: Path) -> int:
    """The size that a safetensors file says it has: eight bytes with the length of its header, the header, the tensors."""
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else 2**62
        if length > file.stat().st_size:
            return length
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
