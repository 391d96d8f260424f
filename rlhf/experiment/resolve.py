"""What a stage's configuration leaves to the models that it starts from, filled in before its spec is written: spec.json
says what runs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlhf.catalog.stage import kind_of
from rlhf.config.directories import ABOUT_DATA, find_model
from rlhf.config.schema import Columns, Config, Files
from rlhf.config.sources import OWN_COLUMNS, is_split
from rlhf.experiment.files import parse_json
from rlhf.experiment.templates import choose_template


def resolve_for_stage(config: Config, stage: str, inputs: dict[str, str]) -> Config:
    """Return the configuration as the stage runs it on these input models (name: directory or hub id)."""
    resolved = kind_of(stage).resolve(config, inputs)
    resolved = replace(resolved, data=replace(resolved.data, template=choose_template(resolved, stage, inputs)))
    return select_share(resolved, stage)


def read_from(config: Config, path: str | None) -> Config:
    """Return the configuration whose data set is the one that a stage has made in a directory; as it is where there is
    none."""
    if path is None:
        return config
    columns = Columns(**{name: name for name in OWN_COLUMNS})
    files = Files(*(str(Path(path) / f"{part}.jsonl") for part in ("train", "heldout")))
    data = replace(
        config.data, source="files", files=files, converter="pairs", columns=columns, mix=None, split=None, share=None,
        heldout_fraction=None,
    )  # fmt: skip
    return replace(config, data=data)


def find_data(config: Config, inputs: Mapping[str, str]) -> Config | None:
    """Return the configuration whose data set a stage reads on these inputs; None where another stage is still to make
    it."""
    path = inputs.get("data")
    is_there = path is None or (Path(path) / ABOUT_DATA).is_file()
    return read_from(config, path) if is_there else None


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
