"""From a composed configuration to one that can run: shapes read where none is stated, everything checked."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.catalog.stage import Counts, Work, is_stage, kind_of
from rlhf.config.checks import check, check_keys, check_without_shapes
from rlhf.config.errors import ConfigError, raise_problems
from rlhf.config.inputs import is_hub_id
from rlhf.config.points import compose_config
from rlhf.config.schema import Config, Model
from rlhf.config.sources import reads_hub
from rlhf.data.check import count_without_download, record_problems
from rlhf.experiment.graph import Node, build_graph
from rlhf.experiment.plan import GraphPlan
from rlhf.experiment.resolve import find_data, read_from, resolve_for_stage, select_share
from rlhf.experiment.sweep import Point, Task
from rlhf.models.source import fill_shapes, source_of
from rlhf.planner.auto import choose_layout, is_automatic
from rlhf.planner.plan import StagePlan, plan_stage
from rlhf.planner.work import estimate_work

if TYPE_CHECKING:
    from rlhf.stages.reading import StageData


def load_config(*overrides: str) -> Config:
    """Return the configuration that `python -m rlhf <overrides>` runs: `args` for use from Python. What is `auto` is
    chosen for the last stage. Raises ConfigError."""
    config = resolve_config(compose_config(*overrides))
    return choose_layout(config, config.stages[-1]).config


def resolve_config(config: Config) -> Config:
    """Return the configuration with the shapes of its models, checked. All that needs no shapes is checked before any is
    read."""
    if any(model.num_hidden_layers < 1 and model.path is not None for model in (config.model, config.reward_model)):
        (check_keys if is_automatic(config) else check_without_shapes)(config)
    whole = fill_shapes(config)
    for stage in filter(is_stage, config.stages):
        whole = kind_of(stage).simplify(whole)
    if not is_automatic(whole) or not all(map(is_stage, whole.stages)):
        check(whole)
        return whole
    check_keys(whole)
    for stage in whole.stages:
        check(choose_layout(whole, stage).config)
    return whole


def build_point(config: Config, overrides: list[str], directory: Path, swept: bool = False) -> Point:
    """Make a point of a composed configuration: resolved, checked, and with its stages. Raises ConfigError."""
    resolved = resolve_config(config)
    return Point(resolved, overrides, directory, swept, build_graph(resolved))


def check_sources(config: Config, node: Node) -> None:
    """Look at what a stage that is not done will load beside the data set, before anything starts: models (within seconds,
    without reading weights) and further texts. Where nothing is to run, the hub is not asked."""
    kind = kind_of(node.stage)
    model: Model | None = None if kind.loads is None else getattr(config, kind.loads)
    if model is not None and model.path is not None and not (config.dry_run and is_hub_id(model.path)):
        from rlhf.models.preflight import check_source  # which imports torch

        check_source(source_of(model, str(kind.loads)), config, scorer=False, declared=model)
    if not (config.dry_run and all(map(is_hub_id, node.inputs.values()))):
        kind.check(config, node.inputs)


def reads_records(task: Task) -> bool:
    """Tell whether a task's records are looked at beforehand: those of files, and those of the hub that will be trained
    on."""
    config = find_data(task.config, task.node.inputs)
    is_there = config is not None and config.data.source != "demo" and not (reads_hub(config.data) and config.dry_run)
    return is_there and kind_of(task.node.stage).records is not None


def check_records(config: Config, node: Node) -> None:
    """Look at the records that a stage will read, before anything starts. Raises ConfigError, once for all they lack. Those
    of the hub are not downloaded to be looked at only, and those that a stage is still to make are not there."""
    found = find_data(config, node.inputs)
    if found is None:
        return
    config = found
    if kind_of(node.stage).records is not None and not (reads_hub(config.data) and config.dry_run):
        raise_problems(record_problems(config, node.stage))


def read_data(tasks: list[Task]) -> tuple[dict[str, "StageData"], list[tuple[str, ConfigError]]]:
    """Encode what stages will read of their data, where nobody has, and look at it. Returns the data of each stage that can
    be read, by fingerprint, in the order of the tasks, and what is wrong, with the names of the points."""
    from rlhf.data.tokenized import DataSource  # which imports torch
    from rlhf.stages.reading import read_stage, reading_problems

    found: dict[str, StageData] = {}
    problems: list[tuple[str, ConfigError]] = []
    source: DataSource | None = None
    tasks = [task for task in tasks if find_data(task.config, task.node.inputs) is not None]
    configs = {task.key: resolve_for_stage(task.config, task.node.stage, task.node.inputs) for task in tasks}
    for task in sorted(tasks, key=lambda task: describe_source(configs[task.key])):
        config, path = configs[task.key], task.node.inputs.get("data")
        if source is None or describe_source(source.config) != describe_source(read_from(config, path)):
            source = DataSource(config, path)
        try:
            read = read_stage(config, task.node.stage, source)
            found[task.key] = read
            raise_problems(reading_problems(read))
        except ConfigError as error:
            problems.append((", ".join(task.points), error))
    return {task.key: found[task.key] for task in tasks if task.key in found}, problems


def describe_source(config: Config) -> str:
    """Return all that decides the records of a configuration, and where they are kept once they are encoded."""
    return f"{config.data} {config.seed} {config.output_root}"


def is_encoded_first(task: Task) -> bool:
    """Tell whether the records of a stage are encoded and looked at before anything starts: not in a dry run, and not those
    of the demo that are known to fit, as each token has at least a byte."""
    config = find_data(task.config, task.node.inputs)
    if config is None or kind_of(task.node.stage).reads is None or config.dry_run:
        return False
    data = config.data
    own = config.model.path is None and config.reward_model.path is None
    if data.source != "demo" or data.demo.turns > 1 or not own:
        return True
    from rlhf.data.demo import LONGEST_PROMPT

    return len(data.prompt_format.format(prompt="x" * LONGEST_PROMPT).encode()) > data.max_prompt_tokens


def plan_graph(points: list[Point], tasks: list[Task], waiting: list[Task]) -> GraphPlan:
    """Plan a graph of stages, of which those in `waiting` are to run."""
    return GraphPlan(points, tasks, frozenset(task.key for task in waiting), plan_tasks(tasks))


def plan_tasks(tasks: list[Task]) -> dict[str, StagePlan]:
    """Plan each stage, by fingerprint."""
    plans: dict[str, StagePlan] = {}
    works = estimate_tasks(tasks)
    for task in tasks:
        heldout = count_heldout(task)
        plans[task.key] = plan_stage(task.config, task.node.stage, works[task.key], heldout, task.layout, task.reason)
    return plans


def count_heldout(task: Task) -> int:
    """Return the records that an evaluation reads; 0 where they would have to be downloaded."""
    records, config = kind_of(task.node.stage).records, select_share(task.config, task.node.stage)
    counts = None if records is None else count_records_of(task, config, "heldout")
    return 0 if records is None or counts is None else records(config, counts).number


def count_records_of(task: Task, config: Config, part: str) -> Counts | None:
    """Return the records of a part of what a stage reads; of a data set that a stage is still to make the most that it can
    hold, one of each prompt. None where they would have to be downloaded."""
    found = find_data(config, task.node.inputs)
    if found is not None:
        return count_without_download(found, part)
    counts = count_without_download(config, part)
    most = 0 if counts is None else counts.prompts
    return None if counts is None else Counts(most, most, most, most, desirable=most, undesirable=most)


def estimate_tasks(tasks: list[Task]) -> dict[str, Work | None]:
    """Return the work of each stage, by fingerprint; None where it depends on records that would have to be downloaded."""
    known: dict[str, Counts] = {}
    found: dict[str, Work | None] = {}
    for task in tasks:
        kind = kind_of(task.node.stage)
        config = select_share(task.config, kind.name)
        source, reads = f"{config.data} {task.node.inputs.get('data')}", kind.records
        if reads is not None and source not in known and (counts := count_records_of(task, config, "train")) is not None:
            known[source] = counts
        if reads is None or source not in known:
            found[task.key] = estimate_work(config, kind.name, None)
            continue
        records = reads(config, known[source])
        found[task.key] = estimate_work(config, kind.name, records.number, records.answers)
    return found
