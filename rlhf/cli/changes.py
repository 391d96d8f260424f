"""What to do about a plan that does not fit: the cheapest changes, as the overrides to type."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf.cli.prepare import build_point, plan_tasks
from rlhf.config.compose import config_root
from rlhf.config.errors import ConfigError
from rlhf.config.points import compose_config
from rlhf.config.schema import Config
from rlhf.experiment.plan import GraphPlan, find_plan_problems
from rlhf.experiment.sweep import Point, build_task_graph, lay_out
from rlhf.planner.plan import StagePlan

# How many changes are told.
TOLD = 3
# Changes to try, the plainest first; each is one or more overrides.
CHANGES: tuple[tuple[str, ...], ...] = (
    ("zero=auto",),
    ("zero=2",),
    ("zero=3",),
    ("zero=3-offload",),
    ("sft.gradient_checkpointing=true", "reward.gradient_checkpointing=true", "ppo.gradient_checkpointing=true"),
    ("rollout.micro_batch_size=auto",),
    ("rollout.micro_batch_size=auto", "rollout.release_cache=true"),
    ("zero=auto", "sft.gradient_checkpointing=auto", "reward.gradient_checkpointing=auto",
     "ppo.gradient_checkpointing=auto", "rollout.micro_batch_size=auto", "rollout.tensor_parallel=auto"),
    ("reward_model=opt-350m",),
    ("lora=r128",),
    ("lora=r128", "zero=3"),
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Overrides with which all stages of a point fit, and what they then cost: US dollars, then seconds."""

    words: tuple[str, ...]
    dollars: float
    seconds: float


def check_plan(plan: GraphPlan) -> list[tuple[str, ConfigError]]:
    """Find what does not fit or costs too much, by the names of the points, each error with the fix that was found."""
    by_name = {point.name: point for point in plan.points}
    fixes: dict[str, str] = {}
    found = []
    for points, error in find_plan_problems(plan):
        if error.fix == "":
            text = str(error)
            if text not in fixes:
                fixes[text] = describe_changes(find_changes(by_name[points[0]]))
            found.append((", ".join(points), ConfigError(error.key, error.value, error.problem, fixes[text])))
        else:
            found.append((", ".join(points), error))
    return found


def describe_changes(changes: list[Change]) -> str:
    """The fix that an error tells."""
    if not changes:
        return "nothing that was tried makes it fit: choose more devices (hardware.nodes=...) or a smaller model"
    shown = [" ".join(change.words) + (f" (${change.dollars:,.0f})" if change.dollars > 0 else "") for change in changes]
    return f"try {', or '.join(shown)}"


def find_changes(point: Point) -> list[Change]:
    """Find the cheapest changes with which all stages of a point fit."""
    found: list[Change] = []
    for words in (*CHANGES, *((f"hardware={name}",) for name in hardware_options(point.config))):
        plans = try_change(point, words)
        if plans and all(plan.fits for plan in plans):
            costs = [(plan.dollars or 0.0, plan.total_seconds or 0.0) for plan in plans]
            found.append(Change(words, sum(cost for cost, _ in costs), sum(seconds for _, seconds in costs)))
    found.sort(key=lambda change: (change.dollars, change.seconds, len(change.words)))
    return found[:TOLD]


def hardware_options(config: Config) -> Iterator[str]:
    """The presets of hardware whose devices have no less memory, or of which there are more."""
    from omegaconf import OmegaConf

    for file in sorted((config_root() / "conf" / "hardware").glob("*.yaml")):
        if file.stem != "cpu" and "gpus_per_node" in OmegaConf.load(file):
            yield file.stem


def try_change(point: Point, words: tuple[str, ...]) -> list[StagePlan]:
    """Plan a point with some more overrides; empty if they cannot be."""
    keys = {word.partition("=")[0] for word in words}
    kept = [word for word in point.overrides if word.partition("=")[0].lstrip("+") not in keys]
    try:
        changed = build_point(compose_config(*kept, *words), [*kept, *words], Path(point.directory))
        return list(plan_tasks(lay_out(build_task_graph([changed]))).values())
    except ConfigError:
        return []
