"""Files, directories and names of models and data sets: what can be said of them before anything is opened."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from rlhf.catalog.stage import stage_kinds
from rlhf.config.derive import asked_kinds
from rlhf.config.directories import ABOUT_DATA as ABOUT
from rlhf.config.directories import find_input, find_model
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import Config
from rlhf.config.sources import check_sources

PLACE = "give a directory that holds config.json, or a hub id"


def check_inputs(config: Config) -> Iterator[ConfigError]:
    """Files and directories that the configuration names are there."""
    yield from check_sources(config.data)
    yield from check_ptx(config)
    yield from check_unread(config)
    model, reward_model = config.model, config.reward_model
    inputs = [given for kind in (*stage_kinds().values(), *asked_kinds(config)) for given in kind.find_inputs(config)]
    keys = dict.fromkeys(given.key for given in inputs if given.holds == "model")
    for given in dict.fromkeys(given for given in inputs if given.holds == "data"):
        path = get_key(config, given.key)
        if path not in (None, given.stage) and not (find_input(path, "data") / ABOUT).is_file():
            fix = f"give the directory of a {given.stage} stage that is done, or {given.key}={given.stage}"
            yield ConfigError(given.key, path, "there is no data set that a stage has made", fix)
    for key, path, gguf_file in (
        ("model.path", model.path, model.gguf_file),
        ("reward_model.path", reward_model.path, reward_model.gguf_file),
        *((key, get_key(config, key), None) for key in keys),
    ):
        problem = None if path is None else directory_problem(path, gguf_file)
        if problem is not None:
            yield ConfigError(key, path, problem, PLACE)


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
    for key, value, source, wanted in (
        ("data.mix", ",".join(data.mix or {}) or None, f"data.source={data.source}", "data=mixture"),
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
