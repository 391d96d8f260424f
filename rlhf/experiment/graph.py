"""An experiment as a graph of stages: which there are, what each needs, where its result is."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import Input, kind_of, order_stages
from rlhf.config.directories import find_input
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import Config
from rlhf.experiment.fingerprint import content_id, data_files, fingerprint
from rlhf.experiment.resolve import resolve_for_stage
from rlhf.experiment.stage_directory import StageDirectory, stage_path
from rlhf.planner.auto import with_keys

Changes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Node:
    """A stage of a configuration: its identity, its directory, the models it starts from (name: directory or id), the
    fingerprints of the stages that make them, and the hashes of the files of data that it reads, by their keys. `changes`
    are keys that have other values for it than in the configuration: it is one of several of its kind."""

    stage: str
    fingerprint: str
    directory: StageDirectory
    inputs: dict[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    changes: Changes = ()

    @property
    def name(self) -> str:
        """Its stage, and what tells it from others of that stage: reward-1 is the second member of an ensemble."""
        return "-".join([self.stage, *(str(value) for _, value in self.changes)])


def build_graph(config: Config) -> list[Node]:
    """Return the stages that the configuration asks for, in the order they run.

    Raises ConfigError where a stage needs another one that is neither asked for nor done, unless it is only looked at.
    """
    known: dict[tuple[str, Changes], Node] = {}
    for stage in order_stages(config.stages):
        find_node(config, stage, known)
    return [node for node in known.values() if node.stage in config.stages]


def find_node(
    config: Config, stage: str, known: dict[tuple[str, Changes], Node], changes: Changes = (), above: tuple[str, ...] = ()
) -> Node:
    """Return a stage with its inputs: each given by path, or found by the fingerprint of the stage that makes it. Nodes
    that are found are kept in `known`, those that others need first; `above` are the stages that need this one."""
    if (stage, changes) in known:
        return known[stage, changes]
    config = with_keys(config, dict(changes))
    identities: dict[str, str] = {}
    paths: dict[str, str] = {}
    parents: list[str] = []
    for given in kind_of(stage).find_inputs(config):
        name, value = given.name, get_key(config, given.key)
        if given.is_made(value):
            parent = find_parent(config, given, known, (*above, stage))
            identities[name], paths[name] = parent.fingerprint, str(parent.directory.path / given.holds)
            parents.append(parent.fingerprint)
        elif given.stage is None and value in identities:
            identities[name] = f"{value} {identities[value]}"
        else:
            identities[name], paths[name] = str(content_id(value, given.key)), input_path(value, given.holds)
    digest = fingerprint(resolve_for_stage(config, stage, paths), stage, identities)
    directory = StageDirectory(stage_path(config.output_root, stage, digest))
    found = Node(stage, digest, directory, paths, tuple(parents), data_files(config, stage), changes)
    return known.setdefault((stage, changes), found)


def find_parent(config: Config, given: Input, known: dict[tuple[str, Changes], Node], above: tuple[str, ...]) -> Node:
    """Return the stage that makes an input whose key is null or names it. Raises ConfigError where it is neither asked for
    nor done, unless nothing is to run, and where it is one of those that need it."""
    stage = str(given.stage)
    if stage in above:
        problem = f"these stages need each other's results: {', '.join((*above[above.index(stage) :], stage))}"
        fix = f"give {given.key}=<directory>, of another run"
        raise ConfigError(given.key, get_key(config, given.key) or "null", problem, fix)
    parent = find_node(config, stage, known, given.changes, above)
    if stage not in config.stages and not parent.directory.done and not config.dry_run:
        changed = "".join(f" {key}={value}" for key, value in given.changes)
        known_as = "directory or hub id" if given.holds == "model" else "directory"
        raise ConfigError(
            given.key,
            get_key(config, given.key) or "null",
            f"this configuration's {parent.name} stage ({parent.directory.path.name}) is not done",
            f"run stage={stage}{changed} or stage=all first, or give {given.key}=<{known_as}>",
        )
    return parent


def input_path(given: str, holds: str) -> str:
    """Return the directory of an input: of a stage's directory its model/ or data/, else what was given."""
    return str(find_input(given, holds)) if Path(given).expanduser().exists() else given


def model_path(given: str) -> str:
    """Return the directory that `transformers` loads: of a stage's directory its model/, else what was given."""
    return input_path(given, "model")
