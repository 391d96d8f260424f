"""The points that a command describes, composed as Hydra composes them, but many times as fast.

For each point Hydra reads all files and walks the defaults list anew, twice. Here that is done once for each choice of
options; the values of a point are then set in a copy, by Hydra's own functions. Nothing is written before it is saved.
"""

import copy
import os
import pickle
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from rlhf.catalog.recipe import ModelFacts
from rlhf.config import hydra_compat
from rlhf.config.command import Command, command_of
from rlhf.config.compose import config_root, register, rewrite_words, to_config
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.hydra_errors import REFUSED, translate_error
from rlhf.config.mixture import expand_mixture
from rlhf.config.overrides import check_groups, expand_ranges, fixed_overrides, parse, without_values
from rlhf.config.recipes import read_facts, read_own_facts, register_recipes
from rlhf.config.schema import Config
from rlhf.config.secrets import to_yaml


@dataclass(frozen=True)
class Job:
    """A point as Hydra would hand it to a program: its number, its overrides, its configuration, not yet checked, and the
    directory that is its own."""

    number: int
    overrides: list[str]
    config: Config
    directory: Path


@dataclass
class Composer:
    """Composes what a command line describes, in Hydra's place. Is a context, in which Hydra's global state is set. Raises
    ConfigError for what Hydra refuses, naming the word at fault."""

    command: Command
    bases: dict[tuple[tuple[str, ...], ModelFacts | None], bytes | Exception] = field(default_factory=dict)
    parsed: dict[str, Override] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        version.setbase("1.3")
        register()
        self.outer = GlobalHydra.instance().hydra, HydraConfig.instance().cfg  # of a program that uses Hydra itself
        GlobalHydra.instance().clear()
        extra = None if self.command.config_dir is None else Path(self.command.config_dir).absolute()
        if extra is not None and not extra.is_dir():
            raise ConfigError("--config-dir", extra, "there is no such directory", "give one that holds YAML files")
        self.loader = hydra_compat.build_loader(self.command.config_path, extra)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = self.outer

    @cached_property
    def master(self) -> DictConfig:
        """What Hydra composes of the command itself: of a sweep without what is swept."""
        words = self.command.overrides
        register_recipes(self.model_directories)
        check_groups([self.parse(word) for word in words], self.group, self.get_group_options)
        config = self.load(words, RunMode.MULTIRUN)
        mode = RunMode.MULTIRUN if self.command.multirun else config.hydra.mode or RunMode.RUN
        if config.hydra.mode != mode:
            with read_write(config.hydra):
                config.hydra.mode = mode
                config.hydra.overrides.hydra.append(f"hydra.mode={mode.name}")
        return config

    @cached_property
    def swept(self) -> bool:
        """Whether the command is a sweep. Raises ConfigError for several values of a key in one that is not."""
        swept = bool(self.master.hydra.mode == RunMode.MULTIRUN)
        check_choices(self.master)
        if not swept:
            given = [self.parse(word) for word in self.command.overrides]
            if problem := fixed_overrides(given, bool(self.master.hydra.sweeper.params), self.group):
                raise problem
        return swept

    @cached_property
    def overrides(self) -> list[Override]:
        """The overrides of a sweep but for Hydra's own: those of its preset, replaced by those that were typed."""
        params = self.master.hydra.sweeper.params or {}
        words = [*rewrite_words([f"{key}={value}" for key, value in params.items()]), *overrides_typed(self.master, "task")]
        parsed = [self.parse(word) for word in words]
        return list({override.get_key_element(): override for override in parsed}.values())

    @property
    def points(self) -> list[list[str]]:
        """The overrides of each point, every combination of what is swept. Raises ConfigError if there is none."""
        if not self.swept:
            return [overrides_typed(self.master, "task")]
        self.check()
        return [rewrite_words(words) for words in hydra_compat.split_points(self.overrides)]

    def check(self) -> None:
        """Raise ConfigError for the first word that is wrong by itself."""
        if self.swept and (problem := without_values(self.overrides, self.group)):
            raise problem

    def parse(self, word: str) -> Override:
        """Parse an override, once. Raises ConfigError."""
        if word not in self.parsed:
            self.parsed[word] = expand_ranges(parse(word))
            self.parsed[word].config_loader = self  # type: ignore[assignment]  # of a glob, which asks for options
        return self.parsed[word]

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        """Return the options of a group, as a glob asks for them; presets included, which Hydra's own answer lacks."""
        return list(self.files.get_group_options(group_name, results_filter))

    @cached_property
    def files(self) -> Any:
        """All files of the configuration as Hydra finds them."""
        return hydra_compat.list_files(self.loader, self.command.config_name)

    def group(self, name: str) -> list[str]:
        """Return the options of a group, and the groups in it; empty if there is no such group."""
        if name not in self.options:
            self.options[name] = self.get_group_options(name, None)
        return self.options[name]

    def load(self, words: list[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """Hydra's own composition."""
        try:
            return self.raw_load(words, mode)
        except REFUSED as error:
            raise translate_error(error, words, self.raw_load) from error

    def raw_load(self, words: list[str], mode: RunMode = RunMode.MULTIRUN) -> DictConfig:
        """Hydra's own composition, with Hydra's errors. Values that are swept count as absent in a sweep."""
        name = self.command.config_name
        return self.loader.load_configuration(name, words, mode, validate_sweep_overrides=mode == RunMode.RUN)

    def is_value(self, override: Override) -> bool:
        """Whether an override sets a value, and has no part in the choice of files."""
        if override.is_hydra_override() or override.key_or_group == "hydra" or override.is_sweep_override():
            return False
        return isinstance(override.value(), dict) or not self.group(override.key_or_group)

    def compose(self, overrides: list[str]) -> DictConfig:
        """Return what Hydra composes of a point's overrides, its own node included."""
        if not self.swept and overrides == overrides_typed(self.master, "task") and self.states_facts(self.master):
            return copy_config(self.master)  # the command itself, which is composed already
        words = [*overrides_typed(self.master, "hydra"), *overrides]
        parsed = [self.parse(word) for word in words]
        values = [override for override in parsed if self.is_value(override)]
        choices = tuple(w for w, o in zip(words, parsed, strict=True) if not self.is_value(o))
        try:
            config = self.compose_values(choices, values)
            if (own := self.read_own_model(config)) is not None:
                config = self.compose_values(choices, values, own)
        except REFUSED as error:
            raise translate_error(error, words, self.raw_load) from error
        task = [override for override in parsed if not override.is_hydra_override()]
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.overrides.task = [override.input_line for override in task]
            config.hydra.job.override_dirname = hydra_compat.join_overrides(task, config.hydra.job.config)
        return config

    def compose_values(self, choices: tuple[str, ...], values: list[Override], own: ModelFacts | None = None) -> DictConfig:
        """Return a choice of options with these values in it; `own` are the facts of the model that model=local names."""
        config: DictConfig = pickle.loads(self.compose_options(choices, own))
        hydra_compat.set_values(values, config)
        return config

    def read_own_model(self, config: DictConfig) -> ModelFacts | None:
        """Return the facts, which the options that follow the model depend on, of a model whose option does not state
        them: as model=local, which names one by its path. None if the option does, or if nothing can be read."""
        model = config.model
        if self.states_facts(config):
            return None
        if model.num_parameters > 0:
            return ModelFacts(None, model.family, model.num_parameters)
        named = isinstance(model.path, str)
        return read_own_facts(model.path, model.revision, model.gguf_file, self.model_directories[0]) if named else None

    def states_facts(self, config: DictConfig) -> bool:
        """Whether the chosen option of `model` states family and size."""
        return read_facts(str(config.hydra.runtime.choices.get("model")), self.model_directories) is not None

    def lacks_facts(self, config: DictConfig) -> bool:
        """Whether a model is named of which nothing can be read."""
        named = isinstance(config.model.path, str) and not self.states_facts(config)
        return named and self.read_own_model(config) is None

    @property
    def model_directories(self) -> tuple[Path, ...]:
        """The directories that hold the options of `model`: this program's, and the user's own."""
        added = () if self.command.config_dir is None else (Path(self.command.config_dir).absolute() / "model",)
        return (config_root() / "conf" / "model", *added)

    def compose_options(self, words: tuple[str, ...], own: ModelFacts | None = None) -> bytes:
        """Return the configuration of a choice of options, composed once and pickled: that is copied three times as fast
        as by deepcopy. Raises what Hydra raises."""
        if (words, own) not in self.bases:
            register_recipes(self.model_directories, own)
            try:
                self.bases[words, own] = pickle.dumps(self.raw_load(list(words), RunMode.RUN))
            except REFUSED as error:
                self.bases[words, own] = error
        found = self.bases[words, own]
        if isinstance(found, Exception):
            raise found
        return found

    def compose_job(self, overrides: list[str], number: int = 0) -> Job:
        """Compose a point. Raises ConfigError."""
        config = self.make_current(overrides, number)
        directory = Path(config.hydra.runtime.output_dir)
        return Job(number, overrides, self.convert(config), directory)

    def convert(self, config: DictConfig) -> Config:
        """Return a composed configuration as a `Config`, with the sets of its mixture. Raises ConfigError."""
        problems = expand_mixture(config, {name: partial(self.load_data, name) for name in self.group("data")})
        return to_config(drop_hydra_words(config), problems)

    def load_data(self, option: str) -> dict[str, Any]:
        """Return the values of an option of `data`, as Hydra composes them. Raises ConfigError."""
        if option not in self.sets:
            try:
                composed = self.loader.load_configuration(f"data/{option}", [], RunMode.RUN)
                self.sets[option] = cast(dict[str, Any], OmegaConf.to_container(composed.data, resolve=True))
            except REFUSED as error:
                raise ConfigError("data.mix", option, first_line(error), "correct the option") from error
        return self.sets[option]

    def make_current(self, overrides: list[str], number: int) -> DictConfig:
        """Compose a point with its number and its directory, and make it Hydra's current configuration."""
        config = self.compose(overrides)
        key = "hydra.sweep.dir" if self.swept else "hydra.run.dir"
        resolve(self.master, key)  # a time in it is that of the command
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        with read_write(config.hydra), open_dict(config.hydra):
            if self.swept:
                config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        directory = resolve(config, key)
        if self.swept:
            directory = os.path.join(directory, resolve(config, "hydra.sweep.subdir"))
        current: Any = HydraConfig.get()
        for node in (config.hydra, current):
            with read_write(node), open_dict(node):
                node.runtime.output_dir = os.path.abspath(directory)
        return config

    @property
    def sweep_directory(self) -> Path:
        """The directory of the sweep, which holds those of its points."""
        HydraConfig.instance().set_config(self.master)
        return Path(resolve(self.master, "hydra.sweep.dir"))

    def save(self, jobs: list[Job]) -> None:
        """Write what Hydra writes of a command before it runs: multirun.yaml of a sweep, and .hydra/ of each point."""
        os.environ.update(self.master.hydra.job.env_set)
        if self.swept:
            directory = self.sweep_directory
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "multirun.yaml").write_text(
                to_yaml(OmegaConf.to_container(self.master, resolve=False)), encoding="utf-8"
            )
        for job in jobs:
            self.save_job(job)

    def save_job(self, job: Job) -> None:
        """Write .hydra/ of a point."""
        config = self.make_current(job.overrides, job.number)
        job.directory.mkdir(parents=True, exist_ok=True)
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        if config.hydra.output_subdir is None:
            return
        directory = job.directory / str(config.hydra.output_subdir)
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "hydra": HydraConfig.instance().cfg,
            "overrides": config.hydra.overrides.task,
            "config": drop_hydra_words(config),
        }
        for name, values in files.items():
            (directory / f"{name}.yaml").write_text(
                to_yaml(OmegaConf.to_container(values, resolve=False)), encoding="utf-8"
            )


def compose_config(*overrides: str) -> Config:
    """Return the configuration that `python -m rlhf <overrides>` composes, typed but not checked. Raises ConfigError."""
    with Composer(command_of(list(overrides))) as composer:
        return composer.convert(composer.compose(composer.points[0]))


def copy_config(config: DictConfig) -> DictConfig:
    """Return a copy, three times as fast as deepcopy does."""
    copied: DictConfig = pickle.loads(pickle.dumps(config))
    return copied


def overrides_typed(config: DictConfig, kind: str) -> list[str]:
    """Return the overrides of a composed configuration as they were typed: Hydra's own, or the task's."""
    found = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    return list(found[kind]) if isinstance(found, dict) else []


def drop_hydra_words(config: DictConfig) -> DictConfig:
    """Return a composed configuration without Hydra's node, which is taken out of it."""
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config


def resolve(config: DictConfig, key: str) -> str:
    """Return a path of Hydra's, resolved. Raises ConfigError, of the key that it refers to if that is what cannot be
    resolved."""
    try:
        return str(OmegaConf.select(config, key))
    except OmegaConfBaseException as error:
        to_config(drop_hydra_words(copy.deepcopy(config)))
        text = OmegaConf.to_container(OmegaConf.select(config, key.rpartition(".")[0]), resolve=False)
        given = text[key.rpartition(".")[2]] if isinstance(text, dict) else "..."
        raise ConfigError(key, given, first_line(error), "correct the reference") from error


def check_choices(master: DictConfig) -> None:
    """Refuse Hydra's ways of running jobs, which would do nothing here: stages are run by our launcher."""
    hydra = master.hydra
    if hydra.launcher.get("_target_") != hydra_compat.LAUNCHER:
        chosen = hydra.runtime.choices["hydra/launcher"]
        raise ConfigError("hydra/launcher", chosen, "stages are started by this program", "choose launcher=local or slurm")
    if hydra.sweeper.get("_target_") != hydra_compat.SWEEPER:
        chosen = hydra.runtime.choices["hydra/sweeper"]
        fix = "leave it out; give a key as interval(a,b) to search"
        raise ConfigError("hydra/sweeper", chosen, "points are proposed by this program", fix)
    if hydra.callbacks:
        problem = "stages run in processes of their own, where Hydra does not call them"
        raise ConfigError("hydra.callbacks", ",".join(hydra.callbacks), problem, "leave it out")
    if hydra.job.chdir:
        problem = "stages have directories of their own, and paths are relative to where the command is typed"
        raise ConfigError("hydra.job.chdir", True, problem, "leave it out")
