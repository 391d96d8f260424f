"""Whether the models of a finished stage are what the stage saved.

`manifest.json` beside result.json holds the size and the SHA-256 of each file of its models (model/, critic/, adapter/, …).
Before anything starts sizes are compared, and checksums where that takes no time; a stage that starts from a model
compares all of them (rlhf/stages/inputs.py).
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf.config.directories import ABOUT_DATA, is_finished_stage
from rlhf.experiment.files import parse_json
from rlhf.experiment.tensor_files import index_of_shards, tensor_names

MANIFEST = "manifest.json"
# Files up to this size are read whole before anything starts: they take a twentieth of a second.
SMALL = 64 * 2**20
# What loaders read: such a file that the stage did not save may change what the model is.
LOADED = (".json", ".safetensors", ".bin", ".jinja", ".py", ".model", ".txt")
THREADS = 8


def file_digest(file: Path) -> list[Any]:
    """Return a file's size and SHA-256, once it has reached the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def digest(content: dict[str, Any]) -> str:
    """Return a checksum of what a manifest holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_models(stage: Path) -> dict[str, Any]:
    """Return the manifest of a stage's directory: the size and SHA-256 of every file of its models, each on the disk. Cards
    are left out, since people write in them."""
    models = sorted(path for path in stage.iterdir() if is_model(path)) if stage.is_dir() else []
    files = [file for model in models for file in sorted(model.rglob("*")) if file.is_file() and file.suffix != ".md"]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(file_digest, files)
        content = {"files": {str(file.relative_to(stage)): entry for file, entry in zip(files, found, strict=True)}}
    return {"digest": digest(content), **content}


def is_model(path: Path) -> bool:
    """Whether a directory holds a saved model, or adapters, or a data set that a stage made."""
    names = ("config.json", "adapter_config.json", ABOUT_DATA)
    return path.suffix != ".partial" and any((path / name).is_file() for name in names)


def known_files(model: Path) -> dict[str, list[Any]] | None:
    """Return the sizes and checksums of a model's files, by their names in its directory, as the stage that saved it noted
    them; None if no stage did. Raises ValueError if the stage's manifest is damaged."""
    path = model.resolve()
    file = path.parent / MANIFEST
    if not (file.is_file() and is_finished_stage(path.parent)):
        return None
    try:
        content = parse_json(file.read_text())
        stated = content.pop("digest")
        prefix = f"{path.name}/"
        known = {name.removeprefix(prefix): list(e) for name, e in content["files"].items() if name.startswith(prefix)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
    if stated != digest(content):
        raise ValueError(f"{file} has changed")
    return known or None


def integrity_error(model: Path) -> str | None:
    """Return what is wrong with a saved model, as far as it can be told in a second; None if nothing is.

    Of a model that a stage saved all sizes are compared, and the checksums of files that are small or were written after
    the stage was done. Of another model the form of its files is looked at.
    """
    try:
        known = known_files(model)
        if known is None:
            return malformed_problem(model)
        ready = (model.resolve().parent / MANIFEST).stat().st_mtime_ns
        found = {name: (model / name).stat() for name in known if (model / name).is_file()}
        quick = [name for name, state in found.items() if state.st_size <= SMALL or state.st_mtime_ns > ready]
        return differing_files(model, known, known, quick, remember=True)
    except (OSError, ValueError) as error:
        return str(error)


def differing_files(
    model: Path, known: dict[str, list[Any]], looked_at: Iterable[str], read: Iterable[str], remember: bool = False
) -> str | None:
    """Return how a model differs from what is `known` of its files; None if it does not. Of the files `looked_at` the sizes
    are compared, and the checksums of those that are to be `read`; `remember`: a file that has been read is not read again
    in this process unless its time of modification changes."""
    for name in looked_at:
        file, size = model / name, known[name][0]
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != size:
            return f"{file} has {file.stat().st_size} bytes instead of {size}"
    foreign = [f for f in model.iterdir() if f.suffix in LOADED and f.name not in known and not f.name.startswith(".")]
    if foreign:
        return f"{min(foreign)} was not saved by the stage"

    def is_changed(name: str) -> bool:
        state = (model / name).stat()
        found = cached_digest(model / name, state.st_size, state.st_mtime_ns) if remember else sha256(model / name)
        return bool(found != known[name][1])

    names = sorted(read)
    with ThreadPoolExecutor(THREADS) as pool:
        found = [name for name, differs in zip(names, pool.map(is_changed, names), strict=True) if differs]
    return f"{model / found[0]} has changed since the stage was done" if found else None


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def cached_digest(file: Path, size: int, modified: int) -> str:
    """Return the SHA-256 of a file of this size and time of modification; the points of a sweep share their inputs."""
    return sha256(file)


def malformed_problem(model: Path) -> str | None:
    """Return what is wrong with the form of a model's files: missing, cut off, or no JSON; None if nothing is. Raises
    OSError and ValueError for what cannot be read at all."""
    if not is_model(model):
        return f"{model} has no config.json"
    weights = sorted(model.glob("*.safetensors"))
    if not weights:
        return f"{model} has no weights"
    if problem := json_problem(model):
        return problem
    index = model / "model.safetensors.index.json"
    shards = sorted(set(index_of_shards(index).values())) if index.is_file() else []
    if missing := next((name for name in shards if not (model / name).is_file()), None):
        return f"{model} has no {missing}"
    for file in weights:
        tensor_names(file)
    return None


def json_problem(directory: Path) -> str | None:
    """Return what is wrong with the first file of a directory that is called JSON and is none; None if there is no such."""
    for file in sorted(directory.glob("*.json")):
        try:
            parse_json(file.read_text())
        except (OSError, ValueError) as error:
            return f"{file} cannot be read ({error})"
    return None
