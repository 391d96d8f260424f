"""Data sets of the Hugging Face hub."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.hub import FETCH, find_hub_problem


def load_split(
    name: str, config: str | None, split: str, revision: str | None, key: str, data_dir: str | None = None
) -> Any:
    """Return a split as the datasets library has it. Raises ConfigError, naming `key`, within seconds if the hub does not
    answer and the data set is not in the cache, and for a data set that only a script of its authors could read."""
    import datasets

    problem = find_hub_problem(name, revision, "dataset")
    options = {} if data_dir is None else {"data_dir": data_dir}
    try:
        with offline() if problem else nullcontext():
            return datasets.load_dataset(name, config, split=split, revision=revision, **options)
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        group = key.rpartition(".")[0]
        fix = f"set {group}.revision=refs/convert/parquet, the copy that the hub keeps without it"
        raise ConfigError(key, name, "it is read by a script of its own, which datasets no longer runs", fix) from error
    except (OSError, ValueError) as error:
        fix = FETCH if problem else "check the name and the splits"
        raise ConfigError(key, name, f"it cannot be loaded ({problem or first_line(error)})", fix) from error


def identify_split(
    name: str, config: str | None, split: str, revision: str | None, data_dir: str | None, key: str = "data.hub.name"
) -> list[str]:
    """Return what tells the content of a split from any other: its number of rows, and the names under which the datasets
    library keeps it, which hold a hash of the revision that the hub had."""
    rows = load_split(name, config, split, revision, key, data_dir)
    kept = [Path(file["filename"]) for file in getattr(rows, "cache_files", [])]
    if not kept:  # it is held in memory
        return [split, hashlib.sha256(repr(list(rows)).encode()).hexdigest()]
    return [split, str(len(rows)), *("/".join(file.parts[-5:]) for file in kept)]


@contextmanager
def offline() -> Iterator[None]:
    """Let the libraries look into their caches only."""
    import datasets
    import huggingface_hub

    places: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value
