"""Data sets of the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rlhf.config.errors import ConfigError, first_line
from rlhf.config.hub import FETCH, find_hub_problem


def load_split(name: str, config: str | None, split: str, revision: str | None, key: str) -> Any:
    """A split as the datasets library has it. Raises ConfigError, naming `key`, within seconds if the hub does not answer
    and the data set is not in the cache."""
    import datasets

    problem = find_hub_problem(name, revision, "dataset")
    try:
        with offline() if problem else nullcontext():
            return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError) as error:
        fix = FETCH if problem else "check the name and the splits"
        raise ConfigError(key, name, f"it cannot be loaded ({problem or first_line(error)})", fix) from error


@contextmanager
def offline() -> Iterator[None]:
    """A context in which the libraries look into their caches only."""
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
