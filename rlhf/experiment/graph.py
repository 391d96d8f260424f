"""An experiment as a graph of stages: which there are, what each needs, where its result is."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.ranges import STAGES
from rlhf.config.schema import Config
from rlhf.experiment.fingerprint import content_id, data_files, fingerprint
from rlhf.experiment.resolve import resolve_for_stage
from rlhf.experiment.store import StageDirectory


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
    """The stages that the configuration asks for, in the order they run.

    Raises ConfigError where a stage needs another one that is neither asked for nor done.
    """
    sft = build_node(config, "sft", {}, {})
    reward = build_node(config, "reward", {}, {})
    asked = {"sft": sft, "reward": reward, "bench": build_node(config, "bench", {}, {})}
    if "ppo" in config.stages:
        asked["ppo"] = build_ppo_node(config, sft, reward)
    return [asked[stage] for stage in STAGES if stage in config.stages]


def build_ppo_node(config: Config, sft: Node, reward: Node) -> Node:
    """The PPO stage with its inputs: given by path, or found by fingerprint."""
    identities: dict[str, str] = {}
    places: dict[str, str] = {}
    parents: list[str] = []
    for name, given, parent in (("actor", config.ppo.actor, sft), ("reward", config.ppo.reward, reward)):
        if given is not None:
            identities[name], places[name] = str(content_id(given, f"ppo.{name}")), model_path(given)
            continue
        if parent.stage not in config.stages and not parent.directory.done:
            raise ConfigError(
                f"ppo.{name}",
                "null",
                f"this configuration's {parent.stage} stage ({parent.directory.path.name}) is not done",
                f"run stage={parent.stage} or stage=all first, or give ppo.{name}=<directory or hub id>",
            )
        identities[name], places[name] = parent.fingerprint, str(parent.directory.model)
        parents.append(parent.fingerprint)
    start = config.ppo.critic
    if start not in ("reward", "actor"):
        identities["critic"], places["critic"] = str(content_id(start, "ppo.critic")), model_path(start)
    else:
        identities["critic"] = f"{start} {identities[start]}"
    return replace(build_node(config, "ppo", identities, places), parents=tuple(parents))


def model_path(given: str) -> str:
    """The directory that `transformers` loads: of a stage's directory its model/, else what was given."""
    place = Path(given).expanduser()
    return str(place / "model") if (place / "result.json").is_file() else (str(place) if place.exists() else given)


def build_node(config: Config, stage: str, identities: dict[str, str], places: dict[str, str]) -> Node:
    """One stage of the graph."""
    digest = fingerprint(resolve_for_stage(config, stage, places), stage, identities)
    directory = StageDirectory(Path(config.output_root) / "stages" / f"{stage}-{digest[:12]}")
    return Node(stage, digest, directory, places, files=data_files(config, stage))
