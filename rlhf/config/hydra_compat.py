"""Hydra's private names, each behind a verb. Tried on Hydra 1.3.8.

Hydra has a public function that composes one configuration, and none that composes many: reads its files once, sets values
in a copy, splits a sweep into points, or takes a command line apart as its own entry does.
"""

import argparse
import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

# Hydra's own ways of running jobs, as `_target_` names them.
LAUNCHER = f"{BasicLauncher.__module__}.{BasicLauncher.__name__}"
SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__name__}"


def build_loader(config_path: str, extra: Path | None) -> ConfigLoader:
    """Return what composes the files of a directory, and of an extra one that goes before it. Sets Hydra's global state."""
    path = create_config_search_path(config_path)
    if extra is not None:
        path.prepend("command-line", f"file://{extra}", SearchPathQuery(provider="schema"))
    with read_once():
        return Hydra.create_main_hydra2(task_name="rlhf", config_search_path=path).config_loader


@contextmanager
def read_once() -> Iterator[None]:
    """Let all that Hydra composes within come from a `Repository`."""
    config_loader_impl.ConfigRepository = Repository  # type: ignore[attr-defined]
    try:
        yield
    finally:
        config_loader_impl.ConfigRepository = ConfigRepository  # type: ignore[attr-defined]


class Repository(ConfigRepository):
    """Hydra's sources of options, of which directories are `ParsedFiles`. Hydra copies them for each configuration, and
    for each group that --help names, with all that is registered: that takes longer than all else. No source is changed
    by a composition, so the copies share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return another list of the same sources."""
        copied = copy.copy(self)
        copied.sources = list(self.sources)
        return copied

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Make the sources of a search path."""
        super().initialize_sources(config_search_path)
        self.sources = [ParsedFiles(s.provider, s.path) if s.scheme() == "file" else s for s in self.sources]


class ParsedFiles(FileConfigSource):
    """A directory whose files are parsed once, until they change: Hydra parses each anew for each configuration, which is a
    third of the time that one takes."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return what a file holds, as a copy that Hydra may change. Raises what Hydra raises."""
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_file():
            return super().load_config(config_path)
        facts = file.stat()
        found: ConfigResult = pickle.loads(
            parse_file(self.provider, self.path, config_path, facts.st_mtime_ns, facts.st_size)
        )
        return found


@cache
def parse_file(provider: str, directory: str, config_path: str, mtime: int, size: int) -> bytes:
    """Parse a file of a directory, as it was at this time and of this size in bytes; returns Hydra's result, pickled."""
    return pickle.dumps(FileConfigSource(provider, directory).load_config(config_path))


def list_files(loader: ConfigLoader, config_name: str) -> CachingConfigRepository:
    """Return all files of a configuration, read once: the loader would find them anew for each group, in 50 ms."""
    found: tuple[Any, CachingConfigRepository] = cast(ConfigLoaderImpl, loader)._parse_overrides_and_create_caching_repo(
        config_name, []
    )
    return found[1]


def set_values(overrides: list[Override], config: DictConfig) -> None:
    """Set the values of overrides in a composed configuration. Raises what Hydra raises of a key that there is not."""
    ConfigLoaderImpl._apply_overrides_to_config(overrides, config)


def join_overrides(overrides: list[Override], settings: Any) -> str:
    """Return hydra.job.override_dirname: overrides as a part of a path, by the settings in hydra.job.config."""
    shown = settings.override_dirname
    return str(get_overrides_dirname(overrides, list(shown.exclude_keys), shown.item_sep, shown.kv_sep))


def split_points(overrides: list[Override]) -> list[list[str]]:
    """Return the overrides of each point of a sweep, every combination of what is swept."""
    return [list(words) for words in BasicSweeper.split_arguments(overrides, None)[0]]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's command line."""
    return get_args_parser()


def list_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags that a parser knows."""
    return list(parser._option_string_actions)
