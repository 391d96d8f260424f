"""Data sets of the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rlhf.config.errors import ConfigError, first_line

REACH_S = 5.0


def load_split(name: str, config: str | None, split: str, revision: str | None, key: str) -> Any:
    """A split as the datasets library has it. Raises ConfigError, naming `key`, within seconds if the hub does not answer
    and the data set is not in the cache."""
    import datasets

    problem = unreachable(name, revision)
    try:
        with offline() if problem else nullcontext():
            return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError) as error:
        fix = "check the name, the splits and the network"
        raise ConfigError(key, name, f"it cannot be loaded ({problem or first_line(error)})", fix) from error


def unreachable(name: str, revision: str | None) -> str | None:
    """Why the hub does not give the data set; None if it does. Asked once, for a few seconds: the datasets library goes on
    asking for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, revision=revision, timeout=REACH_S)
    except Exception as error:  # the HTTP client's own errors are no public names
        return first_line(error)
    return None


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
