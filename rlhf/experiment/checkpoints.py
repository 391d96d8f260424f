"""The checkpoints of an unfinished stage: directories that appear whole, know their own checksums, and replace each other.

`checkpoints/<name>/` holds one file per rank, metrics.jsonl and samples.jsonl as they were, and manifest.json, which is
written last: what was saved, by how many ranks, and each file's size and SHA-256. Names sort by age: `step-000012` after
step 12, `step-000012-rollout` after the rollout that follows it.
"""

import contextlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.config.derive import shard_layout
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.experiment.files import parse_json
from rlhf.experiment.integrity import MANIFEST, digest, file_digest
from rlhf.experiment.store import sync_directory, write_json


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself: `numbers` are the stage's own, `files` maps names to [bytes, SHA-256]."""

    step: int
    layout: dict[str, Any]
    numbers: dict[str, Any]
    files: dict[str, list[Any]]


def checkpoint_name(step: int, phase: str | None) -> str:
    """Return the name of the checkpoint after `step` steps, or after a phase of the next one."""
    return f"step-{step:06}" + (f"-{phase}" if phase else "")


def checkpoint_dirs(directory: Path) -> list[Path]:
    """Return the checkpoints of a stage's directory, the newest first; unfinished ones are not among them."""
    found = [path for path in (directory / "checkpoints").glob("step-*") if (path / MANIFEST).is_file()]
    return sorted(found, key=sort_key, reverse=True)


def sort_key(checkpoint: Path) -> tuple[int, str]:
    """Return the key that sorts checkpoints by age: the step (it may have more than six digits), then the phase."""
    return int(checkpoint.name.split("-")[1]), checkpoint.name


def partial_dir(directory: Path, name: str) -> Path:
    """Return the directory in which a checkpoint is written before it is whole."""
    return directory / "checkpoints" / f".{name}.partial"


def publish(directory: Path, name: str, manifest: Manifest, keep: int) -> None:
    """Make a written checkpoint the newest one, and remove all but the last `keep`."""
    unfinished, checkpoint = partial_dir(directory, name), directory / "checkpoints" / name
    content = asdict(manifest)
    write_json(unfinished / MANIFEST, {"digest": digest(content), **content})
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.replace(unfinished, checkpoint)
    sync_directory(checkpoint.parent)  # before the older ones go
    for old in checkpoint_dirs(directory)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def read_manifest(checkpoint: Path) -> Manifest:
    """Return a checkpoint's manifest. Raises ValueError if it is damaged."""
    try:
        content = parse_json((checkpoint / MANIFEST).read_text())
        known = content.pop("digest")
        manifest = Manifest(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read") from error
    if known != digest(content):
        raise ValueError(f"{MANIFEST} has changed")
    return manifest


def integrity_error(checkpoint: Path, names: list[str], manifest: Manifest) -> str | None:
    """Return what is wrong with some of a checkpoint's files; None if nothing is."""
    for name in names:
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        size, known = manifest.files[name]
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if file_digest(file)[1] != known:
            return f"{name} has changed"
    return None


def find_layout(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest sound checkpoint, and the keys with which it was saved that decide what each rank keeps."""
    for checkpoint in checkpoint_dirs(directory):
        with contextlib.suppress(ValueError):  # whoever resumes reports it and takes the one before
            return checkpoint, read_manifest(checkpoint).layout
    return None


def check_layout(directory: Path, config: Config, stage: str) -> None:
    """Refuse to resume a stage on other devices than those that saved it. Raises ConfigError."""
    found = find_layout(directory)
    if found is None:
        return
    checkpoint, saved = found
    for key, value in shard_layout(config, stage).items():
        if saved.get(key) != value:
            raise ConfigError(
                key, value, f"{checkpoint} was saved with {saved.get(key)}",
                f"resume with {key}={saved.get(key)}, or train the stage anew with checkpoint.resume=false",
            )  # fmt: skip


def remove_partial(directory: Path) -> None:
    """Remove what a killed attempt has half written or half removed: it may be as large as a checkpoint."""
    whole = checkpoint_dirs(directory)
    for checkpoint in (directory / "checkpoints").glob("*"):
        if checkpoint not in whole:
            shutil.rmtree(checkpoint, ignore_errors=True)


def remove_all(directory: Path) -> None:
    """Remove all checkpoints."""
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
