"""An experiment as a graph of stages: which there are, what each needs, where its result is."""

from dataclasses import dataclass, field
from pathlib import Path

from rlhf.catalog.stage import kind_of, order_stages
from rlhf.config.directories import find_model
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import Config
from rlhf.experiment.fingerprint import content_id, data_files, fingerprint
from rlhf.experiment.resolve import resolve_for_stage
from rlhf.experiment.stage_directory import StageDirectory, stage_path


@dataclass(frozen=True)
class Node:
    """A stage of a configuration: its identity, its directory, the models it starts from (name: directory or id), the
    fingerprints of the stages that make them, and the hashes of the files of data that it reads, by their keys."""

    stage: str
    fingerprint: str
    directory: StageDirectory
    inputs: dict[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


def build_graph(config: Config) -> list[Node]:
    """Return the stages that the configuration asks for, in the order they run.

    Raises ConfigError where a stage needs another one that is neither asked for nor done.
    """
    known: dict[str, Node] = {}
    return [find_node(config, stage, known) for stage in order_stages(config.stages)]


def find_node(config: Config, stage: str, known: dict[str, Node]) -> Node:
    """Return a stage with its inputs: each given by path, or found by the fingerprint of the stage that makes it. Nodes
    that are found are kept in `known`, by their stages."""
    if stage in known:
        return known[stage]
    identities: dict[str, str] = {}
    places: dict[str, str] = {}
    parents: list[str] = []
    for given in kind_of(stage).find_inputs(config):
        name, value = given.name, get_key(config, given.key)
        if value is None and given.stage is not None:
            parent = find_parent(config, given.key, given.stage, known)
            identities[name], places[name] = parent.fingerprint, str(parent.directory.model)
            parents.append(parent.fingerprint)
        elif given.stage is None and value in identities:
            identities[name] = f"{value} {identities[value]}"
        else:
            identities[name], places[name] = str(content_id(value, given.key)), model_path(value)
    digest = fingerprint(resolve_for_stage(config, stage, places), stage, identities)
    directory = StageDirectory(stage_path(config.output_root, stage, digest))
    known[stage] = Node(stage, digest, directory, places, tuple(parents), data_files(config, stage))
    return known[stage]


def find_parent(config: Config, key: str, stage: str, known: dict[str, Node]) -> Node:
    """Return the stage that makes an input whose `key` is null. Raises ConfigError where it is neither asked for nor
    done."""
    parent = find_node(config, stage, known)
    if stage not in config.stages and not parent.directory.done:
        raise ConfigError(
            key,
            "null",
            f"this configuration's {stage} stage ({parent.directory.path.name}) is not done",
            f"run stage={stage} or stage=all first, or give {key}=<directory or hub id>",
        )
    return parent


def model_path(given: str) -> str:
    """Return the directory that `transformers` loads: of a stage's directory its model/, else what was given."""
    path = Path(given).expanduser()
    return str(find_model(path)) if path.exists() else given
