"""What to do about a plan that does not fit: the cheapest changes, as the overrides to type."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf.cli.prepare import build_point, plan_tasks
from rlhf.config.command import command_of
from rlhf.config.compose import config_root
from rlhf.config.errors import ConfigError
from rlhf.config.points import Composer
from rlhf.config.schema import Config
from rlhf.experiment.plan import GraphPlan, find_plan_problems
from rlhf.experiment.sweep import Point, build_task_graph, lay_out

# How many changes are told.
TOLD = 3
# Options of groups as the keys that they set: keys are composed many times as fast.
OPTIONS: dict[str, tuple[str, ...]] = {
    "zero=auto": ("zero.stage=auto", "zero.offload_optimizer=auto", "zero.offload_param=auto"),
    "zero=2": ("zero.stage=2", "zero.offload_optimizer=false", "zero.offload_param=false"),
    "zero=3": ("zero.stage=3", "zero.offload_optimizer=false", "zero.offload_param=false"),
    "zero=3-offload": ("zero.stage=3", "zero.offload_optimizer=true", "zero.offload_param=true"),
    "lora=r128": ("lora.rank=128", "lora.alpha=256"),
}
# Keys that leave to the planner what hardware decides.
LEFT_OPEN = (
    "sft.gradient_checkpointing=auto", "reward.gradient_checkpointing=auto", "ppo.gradient_checkpointing=auto",
    "sft.micro_batch_size=null", "reward.micro_batch_size=null", "ppo.micro_batch_size=null",
    "rollout.micro_batch_size=auto", "rollout.tensor_parallel=auto",
)  # fmt: skip
# Changes to try, the plainest first; each is one or more overrides.
CHANGES: tuple[tuple[str, ...], ...] = (
    ("zero=auto",),
    ("zero=2",),
    ("zero=3",),
    ("zero=3-offload",),
    *((word,) for word in LEFT_OPEN),
    ("rollout.micro_batch_size=auto", "rollout.release_cache=true"),
    ("sft.gradient_checkpointing=true", "sft.micro_batch_size=null"),
    ("ppo.gradient_checkpointing=true", "ppo.micro_batch_size=null"),
    ("lora=r128",),
    ("lora=r128", "zero=3"),
    ("zero=auto", *LEFT_OPEN),
)


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
    """Return the fix that an error tells."""
    if not changes:
        return "nothing that was tried makes it fit: choose more devices (hardware.nodes=...) or a smaller model"
    shown = [" ".join(change.words) + (f" (${change.dollars:,.0f})" if change.dollars > 0 else "") for change in changes]
    return f"try {', or '.join(shown)}"


def find_changes(point: Point) -> list[Change]:
    """Find the cheapest changes with which all stages of a point fit. Hardware is tried from the cheapest on that has more
    memory, until two presets fit. Where fewer overrides do, more are not told."""
    found: list[Change] = []
    with Composer(command_of(point.overrides)) as composer:
        for words in CHANGES:
            if not (found and len(words) > len(LEFT_OPEN)):
                found += try_change(composer, point, words)
        presets = 0
        for name in larger_hardware(point.config):
            fitting = try_change(composer, point, (f"hardware={name}",))
            found += fitting
            presets += len(fitting)
            if presets == 2:
                break
    found.sort(key=lambda change: (round(change.dollars, 2), round(change.seconds), len(change.words)))
    return found[:TOLD]


def larger_hardware(config: Config) -> list[str]:
    """Return the presets of hardware that have more memory in all, the cheapest first."""
    own = config.hardware
    memory = own.memory_gib * own.gpus_per_node * own.nodes
    sizes = {file.stem: read_hardware(file) for file in (config_root() / "conf" / "hardware").glob("*.yaml")}
    costs = {}
    for name, values in sizes.items():
        devices = values["gpus_per_node"] * values["nodes"]
        if values["device"] == own.device == "cuda" and values["memory_gib"] * devices > memory:
            costs[name] = values["price_per_gpu_hour"] * devices
    return sorted(costs, key=lambda name: (costs[name], name))


def read_hardware(file: Path) -> dict[str, Any]:
    """Return the values of a preset of hardware, with those of the preset that it changes."""
    values = dict(yaml.safe_load(file.read_text()))
    base = [name for name in values.pop("defaults", []) if name != "_self_"]
    return (read_hardware(file.with_name(f"{base[0]}.yaml")) if base else {}) | values


def try_change(composer: Composer, point: Point, words: tuple[str, ...]) -> list[Change]:
    """Plan a point with some more overrides; empty if its stages do not fit with them."""
    applied = [key for word in words for key in OPTIONS.get(word, (word,))]
    keys = {word.partition("=")[0] for word in applied}
    kept = [word for word in point.overrides if word.partition("=")[0].lstrip("+") not in keys]
    try:
        composed = composer.convert(composer.compose([*kept, *applied]))
        changed = build_point(composed, [*kept, *applied], point.directory)
        plans = plan_tasks(lay_out(build_task_graph([changed]))).values()
    except ConfigError:
        return []
    if not all(plan.fits for plan in plans):
        return []
    return [Change(words, sum(plan.dollars or 0.0 for plan in plans), sum(plan.total_seconds or 0.0 for plan in plans))]
