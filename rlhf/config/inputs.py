"""Files, directories and names of models and data sets: what can be said of them before anything is opened."""

import json
import os
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import stage_kinds
from rlhf.config.derive import asked_kinds
from rlhf.config.directories import find_model
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import Config

PLACE = "give a directory that holds config.json, or a hub id"


def check_inputs(config: Config) -> Iterator[ConfigError]:
    """Files and directories that the configuration names are there."""
    if config.data.source == "files":
        for key in ("train", "heldout"):
            paths = getattr(config.data.files, key)
            if not (key == "heldout" and paths is None and config.data.heldout_fraction is not None):
                yield from check_files(f"data.files.{key}", paths)
    if config.data.source == "hub" and config.data.hub.name is None:
        yield ConfigError(
            "data.hub.name", "null", "data=hub needs a data set", "give one, as data.hub.name=Dahoas/rm-static"
        )
    yield from check_ptx(config)
    yield from check_unread(config)
    model, reward_model = config.model, config.reward_model
    keys = dict.fromkeys(
        given.key for kind in (*stage_kinds().values(), *asked_kinds(config)) for given in kind.find_inputs(config)
    )
    for key, path, gguf_file in (
        ("model.path", model.path, model.gguf_file),
        ("reward_model.path", reward_model.path, reward_model.gguf_file),
        *((key, get_key(config, key), None) for key in keys),
    ):
        problem = None if path is None else directory_problem(path, gguf_file)
        if problem is not None:
            yield ConfigError(key, path, problem, PLACE)


def check_files(key: str, paths: str | list[str] | None) -> Iterator[ConfigError]:
    """Check that each path of records names files, and no two of them one file."""
    named: list[str | None] = [*list_paths(paths)]
    for path in named or [None]:
        if path is None or not find_files(path):
            yield ConfigError(key, path, *describe_no_files(path))
    found = [file.resolve() for file in matching_files(paths or [])]
    twice = next((file for file in found if found.count(file) > 1), None)
    if twice is not None:
        yield ConfigError(key, show_paths(paths), f"{twice} is named twice", "name each file once")


def describe_no_files(path: str | None) -> tuple[str, str]:
    """Return why a path names no file of records, and what to give instead."""
    directory = None if path is None else Path(path).expanduser()
    if directory is None or not directory.is_dir():
        fix = "give a .jsonl, .json, .csv, .tsv, .parquet or .arrow file, or a pattern that matches some"
        return "there is no such file", fix
    splits = read_json(directory / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits:
        return f"it holds the splits {', '.join(map(str, splits))}", f"give one of them, as {path}/{splits[0]}"
    return "it is a directory that no data set was saved to", f"give the files in it by a pattern, as {path}/*.jsonl"


def list_paths(paths: str | list[str] | None) -> list[str]:
    """Return the paths that a key of records holds: one, several or none."""
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def show_paths(paths: str | list[str] | None) -> str:
    """Return the paths that a key of records holds as they are typed."""
    return f"[{','.join(paths)}]" if isinstance(paths, list) else str(paths)


def matching_files(paths: str | list[str]) -> list[Path]:
    """Return the files that paths of records name, path by path (see `find_files`)."""
    return [file for path in list_paths(paths) for file in find_files(path)]


def find_files(path: str) -> list[Path]:
    """Return the file of this name, whatever characters it holds; or the Arrow files of a directory that a data set was
    saved to (`Dataset.save_to_disk`); or else the files that match it as a pattern (`*`, `?`, `[...]`, `**`), in the order
    of their names."""
    location = Path(path).expanduser()
    if location.is_file():
        return [location]
    if location.is_dir():
        listed = read_json(location / "state.json").get("_data_files")
        names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        return [location / name for name in names if isinstance(name, str)]
    return sorted(Path(found) for found in glob(str(location), recursive=True) if Path(found).is_file())


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a small JSON file holds; an empty one where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_hub_id(path: str | None) -> bool:
    """Whether a path is none here, so that it names something on the hub."""
    return path is not None and not Path(path).expanduser().exists()


def directory_problem(path: str, gguf_file: str | None = None) -> str | None:
    """Why a path holds no model that can be loaded; None if it may, or if it may be a hub id."""
    location = Path(path).expanduser()
    if not location.exists():
        typed = path.startswith(("/", "./", "../", "~", "outputs/"))
        return "there is no such directory" if typed else None
    if not location.is_dir():
        return "it is a file"
    location = find_model(location)
    if gguf_file is not None or (location / "adapter_config.json").is_file():
        return None
    try:
        settings = json.loads((location / "config.json").read_text())
    except OSError:
        return "it cannot be loaded: it holds no config.json"
    except (ValueError, RecursionError):
        return "it cannot be loaded: its config.json is no JSON"
    named = isinstance(settings, dict) and settings.get("model_type")
    return None if named else "it cannot be loaded: its config.json names no model_type"


def check_ptx(config: Config) -> Iterator[ConfigError]:
    """Check that the texts of PPO's pre-training loss are named, if it is asked for."""
    ptx = config.ppo.ptx
    if config.ppo.ptx_coef > 0 and ptx.source == "file" and (ptx.file is None or not Path(ptx.file).is_file()):
        fix = "give a .jsonl, .json, .csv, .parquet or .txt file"
        yield ConfigError("ppo.ptx.file", ptx.file, "there is no such file", fix)
    if config.ppo.ptx_coef > 0 and ptx.source == "hub" and ptx.hub is None:
        yield ConfigError("ppo.ptx.hub", "null", "ppo.ptx.source=hub needs a data set", "give one, as ppo.ptx.hub=NAME")


def check_unread(config: Config) -> Iterator[ConfigError]:
    """Check that each named source would be read: a file of another source, or a revision of a directory, is a mistake."""
    data, ptx = config.data, config.ppo.ptx
    if data.source == "demo" and data.converter != "auto":
        fix = "set data=files or data=hub, or leave it out"
        yield ConfigError("data.converter", data.converter, "data.source=demo does not read it", fix)
    if data.source == "demo" and data.heldout_fraction is not None:
        fix = "set data.demo.heldout_prompts, or leave it out"
        yield ConfigError("data.heldout_fraction", data.heldout_fraction, "data.source=demo does not read it", fix)
    if data.source == "files" and data.heldout_fraction is not None and data.files.heldout is not None:
        problem = "the held-out records are a file of their own"
        yield ConfigError("data.heldout_fraction", data.heldout_fraction, problem, "leave out one of the two")
    for key, value, source, wanted in (
        ("data.files.train", data.files.train, f"data.source={data.source}", "data=files"),
        ("data.files.heldout", data.files.heldout, f"data.source={data.source}", "data=files"),
        ("data.hub.name", data.hub.name, f"data.source={data.source}", "data=hub"),
        ("ppo.ptx.file", ptx.file, f"ppo.ptx.source={ptx.source}", "ppo.ptx.source=file"),
        ("ppo.ptx.hub", ptx.hub, f"ppo.ptx.source={ptx.source}", "ppo.ptx.source=hub"),
    ):
        if value is not None and not source.endswith(wanted.partition("=")[2]):
            yield ConfigError(key, value, f"{source} does not read it", f"set {wanted}, or leave it out")
    for group in ("model", "reward_model"):
        model = getattr(config, group)
        is_directory = model.path is not None and Path(model.path).expanduser().is_dir()
        if model.revision is not None and (model.path is None or is_directory):
            problem = "a directory has no revisions" if is_directory else "there is no hub model it could be of"
            fix = f"give a hub id as {group}.path, or leave it out"
            yield ConfigError(f"{group}.revision", model.revision, problem, fix)


def check_writable(config: Config) -> Iterator[ConfigError]:
    """Results can be written; where nothing is to run, they could be elsewhere."""
    root = Path(config.output_root)
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    writable = config.dry_run or os.access(existing, os.W_OK | os.X_OK)
    if not existing.is_dir() or not writable:
        yield ConfigError(
            "output_root",
            config.output_root,
            f"{existing} cannot be written",
            "choose another directory: output_root=...",
        )
