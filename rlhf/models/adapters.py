"""Adapters that are saved by themselves, in PEFT's format: which model they belong to. Nothing here needs torch.

PEFT's adapter_config.json names that model by a path or hub id, which may come to name another model, or none. So
base_model.json beside it says which content was there, and where it is as seen from the adapters' directory: results can be
moved as a whole, and another model is refused.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.schema import Config
from rlhf.experiment.files import parse_json
from rlhf.experiment.fingerprint import sample
from rlhf.experiment.store import write_json
from rlhf.models.source import Source

BASE = "base_model.json"
# The files that decide which function a model is.
WEIGHTS = (".safetensors", ".bin")


def weights_digest(model: Path) -> str:
    """Return a hash of what a model computes: its config.json and weights, wherever they are."""
    digest = hashlib.sha256()
    for file in sorted(model.iterdir()):
        if file.suffix in WEIGHTS or file.name == "config.json":
            digest.update(f"{file.name}:{file.stat().st_size}:".encode() + sample(file))
    return digest.hexdigest()


def record_base(settings: Any, commit: str | None, directory: Path) -> None:
    """Make the configuration of adapters, which are being saved in `directory`, name the model that they belong to so that
    it is found from elsewhere: by an absolute path, or by its hub id and `commit`."""
    stated = settings.base_model_name_or_path or None
    settings.base_model_name_or_path = stated
    if stated is None:
        return
    if not Path(stated).is_dir():
        settings.revision = settings.revision or commit
        return
    base = Path(stated).resolve()
    settings.base_model_name_or_path = str(base)
    relative = os.path.relpath(base, directory.resolve())
    write_json(directory / BASE, {"path": str(base), "relative": relative, "content": weights_digest(base)})


def are_adapters(path: Path) -> bool:
    """Whether adapters are all that a directory holds."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def adapter_base(source: Source) -> Source | None:
    """Return where the model is that the adapters at `source` belong to; None if `source` is a whole model.

    Raises ConfigError if that model is not there, or if another one is there.
    """
    directory = Path(source.name_or_path)
    if not are_adapters(directory):
        return None
    try:
        stated = parse_json((directory / "adapter_config.json").read_text())
        noted = parse_json((directory / BASE).read_text()) if (directory / BASE).is_file() else {}
        named, revision = stated.get("base_model_name_or_path"), stated.get("revision")
        content, relative = noted.get("content"), noted.get("relative")
    except (OSError, ValueError, AttributeError) as error:
        problem = f"its adapters cannot be read ({first_line(error)})"
        raise ConfigError(source.key, source.path, problem, "copy them again") from error
    if not isinstance(named, str) or not named:
        raise ConfigError(source.key, source.path, "its adapters do not say which model they belong to", "merge them first")
    paths = [Path(named).expanduser(), *([directory / relative] if relative else [])]
    there = [path for path in paths if path.is_dir()]
    if not there and content is None and not Path(named).is_absolute():
        return Source(named, source.key, revision, source.trust_remote_code)
    found = next((path for path in there if content is None or weights_digest(path) == content), None)
    if found is None:
        problem = f"the model that its adapters were trained on is not at {named}"
        if there:
            problem = f"{there[0]} is not the model that its adapters were trained on"
        copy = f"a copy of {directory} whose adapter_config.json names it (base_model_name_or_path)"
        fix = f"put that model there, or give {copy}"
        raise ConfigError(source.key, source.path, problem, fix)
    return Source(str(found), source.key, None, source.trust_remote_code)


def check_new_adapters(config: Config, key: str, source: Source) -> None:
    """Refuse new adapters that will be saved by themselves but start from adapters, since the model that these are merged
    into is on no disk. `key` is the group of the new ones."""
    lora = getattr(config, key)
    if lora.rank > 0 and not lora.save_merged and are_adapters(Path(source.name_or_path)):
        problem = f"{source.path} holds adapters, which new adapters by themselves would leave out"
        raise ConfigError(f"{key}.save_merged", False, problem, f"set {key}.save_merged=true")
