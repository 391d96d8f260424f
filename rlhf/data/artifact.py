"""Artifacts of the data: made once for all that read them, in `<output_root>/data/<kind>-<first 12 of the fingerprint>/`.

The fingerprint is a hash of all that decides what is in it: the content of the data set, the keys of `data` that are read,
the tokenizer, and the code that makes it. So nothing is ever out of date, and any directory there may be removed while
nothing runs: it is made again.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rlhf
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key, is_neutral, keys_of
from rlhf.config.schema import Config
from rlhf.config.sources import Source, is_split, list_sources
from rlhf.data.files import PLANNED
from rlhf.data.hub import identify_split
from rlhf.experiment import stopping
from rlhf.experiment.files import Unreadable, read_object
from rlhf.experiment.fingerprint import changed_file, hash_records, identify_value, name_contents
from rlhf.experiment.lock import check, hold
from rlhf.experiment.store import sync_directory, write_json
from rlhf.runtime.distributed import is_main

# The file that says what an artifact holds: written last, so that one without it is made again.
INFO = "info.json"
# Between two looks of a rank that waits for the first one.
POLL_S = 0.2
# The keys of `data` that decide what text there is, but not how much of it is taken.
LENGTHS = ("data.max_prompt_tokens", "data.max_response_tokens", "data.truncation")


def check_planned(config: Config, hashes: Mapping[str, Any]) -> None:
    """Raise ConfigError, with both hashes, for a file that is not what the fingerprint of the running stage says."""
    for key, planned in (PLANNED.get() or {}).items():
        if key in hashes and hashes[key] != planned:
            raise changed_file(key, get_key(config, key), planned, hashes[key])


def identify_data(config: Config, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return all that decides the records of the data set and their text: the `result` keys of `data` that are not
    neutral, paths by the content of their files, a hub data set by what the hub had, and the seed where it matters."""
    known = {name: key for name, key in keys_of(type(config)).items() if name.startswith("data.") and name not in without}
    found: dict[str, Any] = {
        name: identify_value(get_key(config, name), name, key.content)
        for name, key in known.items()
        if key.effect == "result" and not is_neutral(config, name)
    }
    data = config.data
    if data.mix is not None:  # the sets stand in it by their order, and the files of each for who reads them
        sets = name_contents(config, "data.mix")
        found |= {key: hash_records(paths) for key, paths, content in sets if content == "records" and paths is not None}
    check_planned(config, found)
    if data.source in ("demo", "mixture") or data.heldout_fraction is not None or is_split(data):
        found["seed"] = config.seed
    if hubs := [source for source in list_sources(data) if source.is_on_hub]:
        found["hub"] = [identify_source(source, split) for source in hubs for split in source.splits()]
    return found


def identify_source(source: Source, split: str) -> list[str]:
    """Return what tells the content of a split of a set of the hub from any other."""
    hub = source.keys.hub
    return identify_split(str(hub.name), hub.config, split, hub.revision, hub.data_dir, source.key("train"))


@cache
def identify_code() -> str:
    """Return a hash of the code that makes artifacts, and of the libraries that write text and encode it."""
    root = Path(rlhf.__file__).parent
    digest = hashlib.sha256("".join(map(version, ("tokenizers", "transformers", "jinja2"))).encode())
    for file in [*sorted((root / "data").rglob("*.py")), root / "models" / "tokenizer.py"]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def artifact_path(config: Config, kind: str, content: Mapping[str, Any]) -> Path:
    """Return the directory of the artifact that `content` decides."""
    text = json.dumps({"code": identify_code(), "kind": kind, **content}, sort_keys=True)
    return Path(config.output_root) / "data" / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_info(path: Path) -> dict[str, Any] | None:
    """Return what an artifact says of itself; None where it is not whole."""
    try:
        info = read_object(path / INFO)
        if info is None or any((path / name).stat().st_size != size for name, size in info["files"].items()):
            return None
    except (OSError, Unreadable, KeyError, TypeError, AttributeError):
        return None
    return info


def make_once(config: Config, path: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what an artifact says of itself, after making it if it is not there: the first rank does, under a lock, as
    other runs may want the same one; the other ranks wait. `make` fills a directory, and returns what is to be said."""
    while (info := read_info(path)) is None:
        if is_main():
            with hold(path, config.launcher.lock_timeout_s, print, doing="made"):
                if read_info(path) is None:
                    make_whole(path, make)
        elif stopping.stop_requested.is_set():
            raise stopping.Stopped("asked to stop while the data was tokenised")
        else:
            time.sleep(POLL_S)
    return info


def make_whole(path: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Make an artifact in a directory beside it, move its files in, and declare it whole. Raises ConfigError where it
    cannot be written."""
    aside = path / f"unfinished-{uuid.uuid4().hex[:8]}"
    for left in path.glob("unfinished-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        said = make(aside)
        sizes = {str(file.relative_to(aside)): file.stat().st_size for file in aside.rglob("*") if file.is_file()}
        for file in aside.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            check(path)
            file.replace(path / file.name)
        check(path)
        sync_directory(path)
        write_json(path / INFO, {**said, "files": sizes})
    except OSError as error:
        fix = "make room, or choose another directory: output_root=..."
        raise ConfigError("output_root", path, f"the tokenised data cannot be written ({error.strerror})", fix) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
