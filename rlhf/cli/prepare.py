"""From a composed configuration to one that can run: shapes read where none is stated, everything checked."""

from rlhf.config.checks import check, check_without_shapes
from rlhf.config.derive import benchmark_config
from rlhf.config.errors import raise_problems
from rlhf.config.points import compose_config
from rlhf.config.schema import Config
from rlhf.data.check import record_problems
from rlhf.data.dataset import Comparison
from rlhf.data.records import load_dataset
from rlhf.data.text import load_texts
from rlhf.experiment.graph import Node
from rlhf.experiment.sweep import Task
from rlhf.models.adapters import check_new_adapters
from rlhf.models.source import Source, fill_shapes, source_of
from rlhf.planner.work import Work, estimate_work


def load_config(*overrides: str) -> Config:
    """The configuration that `python -m rlhf <overrides>` runs: `args` for use from Python. Raises ConfigError."""
    return resolve_config(compose_config(*overrides))


def resolve_config(config: Config) -> Config:
    """The configuration with the shapes of its models, checked. All that needs no shapes is checked before any is read."""
    if any(model.layers < 1 and model.path is not None for model in (config.model, config.reward_model)):
        check_without_shapes(config)
    whole = fill_shapes(config)
    if "bench" in config.stages:
        whole = benchmark_config(whole)
    check(whole)
    return whole


def check_sources(config: Config, node: Node) -> None:
    """Look at what a stage that is not done will load beside the data set, before anything starts: models (within seconds,
    without reading weights) and the texts of the pre-training loss."""
    from rlhf.models.preflight import check_source  # which imports torch

    if node.stage == "sft" and config.model.path is not None:
        check_source(source_of(config.model, "model"), config, scorer=False, declared=config.model)
    if node.stage == "reward" and config.reward_model.path is not None:
        check_source(source_of(config.reward_model, "reward_model"), config, scorer=False, declared=config.reward_model)
    if node.stage == "ppo":
        if config.ppo.ptx_coef > 0 and config.ppo.ptx.source != "demonstrations":
            load_texts(config.ppo.ptx, config.data.prompt_format, [])
        starts = {"lora": "actor", "critic_lora": config.ppo.critic if config.ppo.critic in node.inputs else "critic"}
        for lora, start in starts.items():
            check_new_adapters(config, lora, Source(node.inputs[start], f"ppo.{start}"))
        given = {"actor": config.ppo.actor is not None, "reward": config.ppo.reward is not None, "critic": True}
        for key, place in node.inputs.items():
            if given[key]:
                model = config.model if key == "actor" else config.reward_model
                source = Source(place, f"ppo.{key}", trust_remote_code=model.trust_remote_code)
                check_source(source, config, scorer=key != "actor")


def check_records(config: Config, node: Node) -> None:
    """Look at the records that a stage will read, before anything starts. Raises ConfigError, once for all they lack. Those
    of the hub are not downloaded to be looked at only."""
    if node.stage != "bench" and not (config.data.source == "hub" and config.dry_run):
        raise_problems(record_problems(config, node.stage))


def estimate_tasks(tasks: list[Task]) -> dict[str, Work | None]:
    """The work of each stage, by fingerprint; None where it depends on records that would have to be downloaded."""
    known: dict[str, dict[str, tuple[int, int]]] = {}
    found: dict[str, Work | None] = {}
    for task in tasks:
        config, stage = task.config, task.node.stage
        if config.data.source == "hub" or stage == "bench":
            found[task.key] = estimate_work(config, stage, None)
            continue
        source = f"{config.data} {config.reward.grouped}"
        if source not in known:
            known[source] = count_training_records(config)
        found[task.key] = estimate_work(config, stage, *known[source][stage])
    return found


def count_training_records(config: Config) -> dict[str, tuple[int, int]]:
    """The training records of each stage, and the most answers that one of them has. Those of the demo are not made to be
    counted: there are as many for every seed."""
    grouped = config.reward.grouped
    if config.data.source == "demo":
        from rlhf.data.demo import demo_counts

        demo = demo_counts(config.data.demo)
        reward = (demo.prompts, demo.answers) if grouped else (demo.comparisons, 2)
        return {"sft": (demo.demonstrations, 1), "reward": reward, "ppo": (demo.prompts, 1)}
    train = load_dataset(config).train
    return {
        "sft": (len(train.demonstrations), 1),
        "reward": count_grouped_records(train.comparisons) if grouped else (len(train.comparisons), 2),
        "ppo": (len(train.prompts), 1),
    }


def count_grouped_records(comparisons: list[Comparison]) -> tuple[int, int]:
    """Prompts that are compared on, and the most answers that one has: its pairs are read together."""
    answers: dict[str, set[str]] = {}
    for comparison in comparisons:
        answers.setdefault(comparison.prompt, set()).update((comparison.chosen, comparison.rejected))
    return len(answers), max((len(found) for found in answers.values()), default=2)
