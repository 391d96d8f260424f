"""Which keys decide where and how fast a stage's result is made, and never what it is. All others decide the result of the
stages that read them (StageKind.result_keys).

A benchmark's result is how fast it is: of the second kind only names are left out of its fingerprint."""

from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from rlhf.catalog.stage import kind_of
from rlhf.config.schema import LORAS, ZEROS, Config, Launcher, Zero

# Of ZeRO's keys those that change numbers by more than rounding.
QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients")

# Raised when the meaning of a stage's result changes, so that older results are not taken for it.
SCHEMA_VERSION = 3

# The keys that change nothing at all: names, places, what is kept of a result, and when a run gives up.
NAME_KEYS: tuple[str, ...] = (
    "stages", "name", "output_root", "dry_run", "checkpoint", "sweep", "tracking", "model.name", "reward_model.name",
    *(f"launcher.{field.name}" for field in fields(Launcher) if field.name != "threads"),
    "sft.max_nonfinite", "reward.max_nonfinite", "ppo.max_nonfinite", "ppo.ratio_tolerance", "ppo.sampler_tolerance",
    *(f"{lora}.save_merged" for lora in LORAS),
)  # fmt: skip

# The keys that never change what is trained beyond rounding: those, and speeds. Models that PPO starts from are in its
# fingerprint by what they are.
PLACE_KEYS: tuple[str, ...] = (
    *NAME_KEYS, "bench", "hardware", "launcher.threads",
    *(f"{zero}.{field.name}" for zero in ZEROS for field in fields(Zero) if field.name not in QUANTIZED),
    "sft.micro_batch_size", "sft.gradient_checkpointing",
    "reward.micro_batch_size", "reward.gradient_checkpointing",
    "ppo.micro_batch_size", "ppo.packing", "ppo.offload_idle", "ppo.compile",
    "ppo.gradient_checkpointing", "ppo.critic_gradient_checkpointing",
    "ppo.actor", "ppo.reward", "ppo.critic",
    "rollout.engine", "rollout.graphs", "rollout.release_cache", "rollout.gather", "rollout.tensor_parallel",
    "rollout.micro_batch_size",
)  # fmt: skip


# Of these a sweep has one value for all its points: they hold for the command, not for a stage.
DECIDED_ONCE: tuple[str, ...] = (
    "dry_run", "name", "output_root", "sweep", "tracking.wandb",
    *(f"launcher.{key}" for key in ("kind", "parallel", "wait", "lock_timeout_s")),
)  # fmt: skip


@cache
def types_of(schema: Any) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    return get_type_hints(schema)


def leaf_types(schema: Any = Config, prefix: str = "") -> dict[str, Any]:
    """Map every dotted key of the schema to its type, in order of declaration."""
    hints = types_of(schema)
    types: dict[str, Any] = {}
    for field in fields(schema):
        kind: Any = hints[field.name]
        name = prefix + field.name
        types |= leaf_types(kind, name + ".") if is_dataclass(kind) else {name: kind}
    return types


def without_none(kind: Any) -> Any:
    """The type that a key takes besides null."""
    return next(option for option in get_args(kind) if option is not NoneType) if isinstance(kind, UnionType) else kind


def leaf_keys() -> list[str]:
    """Every dotted key of the schema, in order of declaration."""
    return list(LEAF_TYPES)


def excluded_keys(stage: str) -> tuple[str, ...]:
    """The keys that are never in a stage's fingerprint."""
    return NAME_KEYS if kind_of(stage).is_benchmark else PLACE_KEYS


def matches_prefix(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether one of the prefixes is `key` or a group that holds it."""
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)


# The type of every key.
LEAF_TYPES: dict[str, Any] = leaf_types()
