"""What holds for a command and for where it runs: tracking, checkpoints, search, benchmarks, launching."""

from dataclasses import dataclass
from typing import Any

from rlhf.config.metadata import COEFFICIENT, COUNT, RESOURCE, Range, above_zero, key


@dataclass
class Wandb:
    """Weights & Biases."""

    enabled: bool = key()
    project: str = key()
    entity: str | None = key()
    group: str | None = key()
    tags: list[str] = key()
    mode: str | None = key(choices=("online", "offline", "disabled"))
    log_model: bool = key()


@dataclass
class Tracking:
    """Trackers besides metrics.jsonl."""

    tensorboard: bool = key()
    wandb: Wandb = key(once=True)


@dataclass
class Publish:
    """The Hugging Face hub, to which models are pushed when a command ends."""

    push: str | None = key()
    private: bool = key()
    revision: str | None = key()


# The alarms; their rules are in rlhf/catalog/health.py, in this order.
ALARMS = (
    "kl_acceleration", "entropy_collapse", "length_drift", "reward_gold_gap", "clip_fraction", "unended", "sampler_gap",
)  # fmt: skip


@dataclass
class Health:
    """What is done when a policy's metrics show that its training goes wrong."""

    stop: list[str] = key(choices=ALARMS)


@dataclass
class Checkpoint:
    """When an unfinished stage is saved, and what is done with what was saved."""

    every_steps: int | None = key(COUNT, unit="steps")
    every_minutes: float | None = key(above_zero(1e6), unit="minutes")
    keep: int = key(COUNT)
    on_error: str = key(choices=("go_on", "stop"))
    resume: bool = key()


@dataclass
class Search:
    """What `-m` with intervals looks for, and how."""

    objective: str | None = key()
    direction: str = key(choices=("maximize", "minimize"))
    sampler: str = key(choices=("tpe", "random"))
    pruner: str = key(choices=("none", "median", "hyperband"))
    trials: int = key(COUNT)


@dataclass
class Bench:
    """What `python -m rlhf bench` and stage=bench measure."""

    what: str = key(choices=("step3", "rollout", "score", "train", "sft", "reward", "stages"))
    lengths: str = key(choices=("fixed", "real"))
    repeats: int = key(COUNT)
    engines: list[str] | None = key(choices=("hybrid", "paged", "deepspeed"))
    peer: str | None = key(choices=("deepspeed-chat", "trl"), neutral="deepspeed-chat")


@dataclass
class Plan:
    """What is done about a plan, and what it may come to."""

    check: str = key(choices=("refuse", "warn", "off"))
    max_hours: float | None = key(Range(0, 1e9), unit="hours")
    max_dollars: float | None = key(Range(0, 1e12), unit="US dollars")
    constants: str | None = key()


@dataclass
class Launcher:
    """Where stages run; the keys from `partition` on are SLURM's."""

    kind: str = key(choices=("auto", "inline", "local", "slurm"), once=True)
    threads: int | None = key(RESOURCE, effect="speed")
    parallel: int = key(RESOURCE, once=True)
    grace_s: float = key(COEFFICIENT, unit="seconds")
    lock_timeout_s: float = key(above_zero(1e6), once=True, unit="seconds")
    allow_code_change: bool = key()
    snapshot: bool = key()
    wait: bool = key(once=True)
    partition: str | None = key()
    account: str | None = key()
    qos: str | None = key()
    constraint: str | None = key()
    time_minutes: int = key(RESOURCE, unit="minutes")
    memory_gib: int | None = key(RESOURCE, unit="GiB")
    cpus_per_gpu: int | None = key(RESOURCE)
    setup: list[str] = key()
    array_parallelism: int = key(RESOURCE)
    signal_delay_s: int = key(RESOURCE, unit="seconds")
    max_requeues: int = key(Range(0, 1e6))
    additional: dict[str, Any] | None = key()
