"""From a composed configuration to one that can run: shapes read where none is stated, everything checked."""

from rlhf.catalog.stage import Counts, Work, is_stage, kind_of
from rlhf.config.checks import check, check_without_shapes
from rlhf.config.errors import raise_problems
from rlhf.config.points import compose_config
from rlhf.config.schema import Config, Model
from rlhf.data.check import count_part, record_problems
from rlhf.experiment.graph import Node
from rlhf.experiment.sweep import Task
from rlhf.models.source import fill_shapes, source_of
from rlhf.planner.work import estimate_work


def load_config(*overrides: str) -> Config:
    """The configuration that `python -m rlhf <overrides>` runs: `args` for use from Python. Raises ConfigError."""
    return resolve_config(compose_config(*overrides))


def resolve_config(config: Config) -> Config:
    """The configuration with the shapes of its models, checked. All that needs no shapes is checked before any is read."""
    if any(model.num_hidden_layers < 1 and model.path is not None for model in (config.model, config.reward_model)):
        check_without_shapes(config)
    whole = fill_shapes(config)
    for stage in filter(is_stage, config.stages):
        whole = kind_of(stage).simplify(whole)
    check(whole)
    return whole


def check_sources(config: Config, node: Node) -> None:
    """Look at what a stage that is not done will load beside the data set, before anything starts: models (within seconds,
    without reading weights) and further texts."""
    kind = kind_of(node.stage)
    model: Model | None = None if kind.loads is None else getattr(config, kind.loads)
    if model is not None and model.path is not None:
        from rlhf.models.preflight import check_source  # which imports torch

        check_source(source_of(model, str(kind.loads)), config, scorer=False, declared=model)
    kind.check(config, node.inputs)


def check_records(config: Config, node: Node) -> None:
    """Look at the records that a stage will read, before anything starts. Raises ConfigError, once for all they lack. Those
    of the hub are not downloaded to be looked at only."""
    if kind_of(node.stage).records is not None and not (config.data.source == "hub" and config.dry_run):
        raise_problems(record_problems(config, node.stage))


def estimate_tasks(tasks: list[Task]) -> dict[str, Work | None]:
    """The work of each stage, by fingerprint; None where it depends on records that would have to be downloaded."""
    known: dict[str, Counts] = {}
    found: dict[str, Work | None] = {}
    for task in tasks:
        config, kind = task.config, kind_of(task.node.stage)
        if config.data.source == "hub" or kind.records is None:
            found[task.key] = estimate_work(config, kind.name, None)
            continue
        source = str(config.data)
        if source not in known:
            known[source] = count_part(config, "train")
        records = kind.records(config, known[source])
        found[task.key] = estimate_work(config, kind.name, records.number, records.answers)
    return found
