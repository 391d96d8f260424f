"""What a stage's configuration leaves to the models that it starts from, filled in before its spec is written: spec.json
says what runs."""

from dataclasses import replace
from pathlib import Path

from rlhf.catalog.stage import kind_of
from rlhf.config.directories import find_model
from rlhf.config.schema import Config
from rlhf.config.sources import is_split
from rlhf.experiment.files import parse_json
from rlhf.experiment.templates import choose_template


def resolve_for_stage(config: Config, stage: str, inputs: dict[str, str]) -> Config:
    """Return the configuration as the stage runs it on these input models (name: directory or hub id)."""
    resolved = kind_of(stage).resolve(config, inputs)
    resolved = replace(resolved, data=replace(resolved.data, template=choose_template(resolved, stage, inputs)))
    return select_share(resolved, stage)


def select_share(config: Config, stage: str) -> Config:
    """Return the configuration with the share of a split data set that a stage reads."""
    kind, data = kind_of(stage), config.data
    if kind.records is None or data.share is not None or not is_split(data):
        return config
    return replace(config, data=replace(data, share=kind.share))


def default_eos_penalty_mode(normalized: bool) -> str:
    """Say how a response without end is penalised where `ppo.eos_penalty_mode` is null: a fixed score in its place presumes
    scores of mean 0 and deviation 1; where scores may be lower than it, it would reward what has no end."""
    return "replace" if normalized else "subtract"


def are_scores_normalized(path: str) -> bool:
    """Whether the reward model in a directory (or in the stage's directory) scales its scores, as its config.json says. Of
    one that is on the hub it is not known, and so taken not to."""
    file = find_model(Path(path).expanduser()) / "config.json"
    try:
        return float(parse_json(file.read_text()).get("reward_scale", 1.0)) != 1.0
    except (OSError, ValueError, TypeError, AttributeError):
        return False  # what cannot be read is refused where the model is looked at
