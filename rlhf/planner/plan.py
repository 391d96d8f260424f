"""The plan of a stage: whether it fits, how long it takes, and what it costs. Pure: no torch, no GPU, no weights."""

from dataclasses import dataclass, field, replace
from typing import Any

from rlhf.catalog.stage import StageKind, Work, kind_of
from rlhf.config.derive import Batches, measured_stage, ranks, samples_responses_in, share_batch
from rlhf.config.schema import Config
from rlhf.planner.auto import HOST_SHARE
from rlhf.planner.batches import answered_together, largest_micro_batch, rollout_rows, texts_read_together
from rlhf.planner.constants import Constants, load_constants
from rlhf.planner.host import host_bytes
from rlhf.planner.memory import GIB, Batch, Bytes, peak_bytes, phase_bytes
from rlhf.planner.storage import disk_bytes, saved_bytes, state_on_disk
from rlhf.planner.time import Parts, answering_seconds, merge, read_seconds, reading_seconds, step_seconds

HOUR = 3600.0
# Held-out records are read before the first step and after the last one, and in between where `eval_every` says so.
EVALUATIONS = 2


@dataclass(frozen=True)
class StagePlan:
    """What a stage takes.

    Attributes:
        stage: Its kind.
        steps: Its steps; None where they depend on records that are not known.
        flops: Its operations at most; None where its steps are not known.
        devices: How many devices it holds while it runs.
        memory: Bytes on a device by phase and component.
        room: Bytes that a device has.
        host: Bytes that a rank holds of its node's main memory.
        host_room: Bytes that it may hold.
        disk: Bytes that it writes at most.
        seconds: Seconds by phase and part; phases of steps are empty where their number is not known.
        price: US dollars for a device and hour.
        evaluations: How often it evaluates, before its first step and after its last one included.
        answers: The answers that a record of comparisons has at most.
        layout: The keys that the planner chose, with their values.
        reason: Why it chose them.
    """

    stage: str
    steps: int | None
    flops: int | None
    devices: int
    memory: dict[str, Bytes]
    room: float
    host: float
    host_room: float
    disk: float
    seconds: dict[str, Parts]
    price: float
    evaluations: int = 0
    answers: int = 2
    layout: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def peak(self) -> float:
        """Bytes on a device in the phase that takes most, with what stays free."""
        return peak_bytes(self.memory)

    @property
    def fullest(self) -> str:
        """The phase that takes most."""
        return max(self.memory, key=lambda phase: sum(self.memory[phase].values()))

    @property
    def lacking(self) -> tuple[str, ...]:
        """The memory that is too small for the stage: a device's (GPU), its node's (main)."""
        needs = {"GPU": (self.peak, self.room), "main": (self.host, self.host_room)}
        return tuple(name for name, (taken, there) in needs.items() if taken > there)

    @property
    def fits(self) -> bool:
        """Whether a device and its node have what the stage takes."""
        return not self.lacking

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        return {phase: sum(parts.values()) for phase, parts in self.seconds.items()}

    @property
    def total_seconds(self) -> float | None:
        """Seconds from its start to its end; None where its steps are not known."""
        return None if self.steps is None else sum(self.phases.values())

    @property
    def gpu_hours(self) -> float | None:
        """Device-hours."""
        return None if self.total_seconds is None else self.total_seconds / HOUR * self.devices

    @property
    def dollars(self) -> float | None:
        """US dollars."""
        return None if self.gpu_hours is None else self.gpu_hours * self.price


def plan_stage(
    config: Config, stage: str, work: Work | None, heldout: int = 0, layout: dict[str, Any] | None = None, reason: str = ""
) -> StagePlan:
    """Plan a stage.

    Args:
        config: Its configuration, without `auto`.
        stage: Its kind.
        work: Its steps and operations; None where they are not known.
        heldout: Records that each of its evaluations reads.
        layout: The keys that the planner chose, with their values.
        reason: Why it chose them.
    """
    constants = load_constants(config.plan.constants, config.hardware.device)
    measured, kind = measured_stage(config, stage), kind_of(stage)
    if not kind.trains:
        return plan_reading(config, kind, heldout, constants, layout or {}, reason)
    shares = plan_batches(config, measured)
    rows = rollout_rows(config, measured)
    if kind_of(measured).samples_to_evaluate:
        rows = answered_together(config, measured)
    steps, answers = (None, 2) if work is None else (work.steps, work.answers)
    flops = kind_of(measured).phase_flops(config, answers)
    step = step_seconds(config, measured, flops, shares, constants, answers)
    evaluations = 0 if steps is None or kind.is_benchmark else count_evaluations(config, measured, steps)
    seconds = {"load": load_parts(config, measured, kind, constants)}
    if steps is not None:
        rounds = steps + 1 if kind.is_benchmark else steps  # one warms up
        seconds |= {phase: {name: rounds * value for name, value in parts.items()} for phase, parts in step.items()}
        if not kind.is_benchmark:
            seconds["evaluate"] = evaluation_parts(config, measured, step, evaluations * heldout, rows, constants)
            seconds["save"] = saving_parts(
                config, measured, sum(sum(p.values()) for p in seconds.values()), steps, constants
            )
    return StagePlan(
        stage=stage, steps=steps, flops=None if work is None else work.flops, devices=ranks(config),
        answers=answers, memory=phase_bytes(config, measured, Batch(shares.micro, rows)),
        room=config.hardware.memory_gib * GIB,
        host=host_bytes(config, measured),
        host_room=find_host_room(config),
        disk=0.0 if kind.is_benchmark else disk_bytes(config, measured), seconds=seconds,
        price=config.hardware.price_per_gpu_hour, evaluations=evaluations, layout=layout or {}, reason=reason,
    )  # fmt: skip


def plan_reading(
    config: Config, kind: StageKind, records: int, constants: Constants, layout: dict[str, Any], reason: str
) -> StagePlan:
    """Plan a stage that trains nothing: it answers so many prompts and reads the answers with its models, or reads so many
    records alone; 0 where their number is not known."""
    size = texts_read_together(config, kind.name)
    texts = records * (config.evaluate.samples if kind.samples else kind.sequences(config) * len(kind.roles(config)))
    steps = -(-texts // (size * ranks(config))) or None
    seconds = {"load": load_parts(config, kind.name, kind, constants)}
    if steps is not None:
        take = answering_seconds if kind.samples else reading_seconds
        seconds["evaluate"] = take(config, kind, texts if kind.samples else records, size, constants)
    return StagePlan(
        stage=kind.name, steps=steps, flops=None, devices=ranks(config),
        memory=phase_bytes(config, kind.name, Batch(size, size)), room=config.hardware.memory_gib * GIB,
        host=host_bytes(config, kind.name),
        host_room=find_host_room(config),
        disk=0.0, seconds=seconds, price=config.hardware.price_per_gpu_hour, layout=layout, reason=reason,
    )  # fmt: skip


def find_host_room(config: Config) -> float:
    """Return the bytes of its node's main memory that a rank may hold; on the CPU that memory is its device's."""
    on_gpu = config.hardware.device == "cuda"
    return HOST_SHARE * config.hardware.host_memory_gib * GIB if on_gpu else float("inf")


def plan_batches(config: Config, stage: str) -> Batches:
    """Return the shares of a stage's batch, as they will be."""
    per_rank, micro = share_batch(config, stage)
    micro = largest_micro_batch(config, stage, per_rank) if micro is None else micro
    return Batches(ranks(config), per_rank, micro, per_rank // micro)


def load_parts(config: Config, stage: str, kind: StageKind, constants: Constants) -> Parts:
    """Seconds from the start of a stage's processes to its first step."""
    models = [] if kind.is_benchmark else [role.model for role in kind_of(stage).roles(config)]
    return {"start": constants.startup_seconds, "disk": read_seconds(config, models, constants)}


def count_evaluations(config: Config, stage: str, steps: int) -> int:
    """Return how often a stage of so many steps evaluates: once if it trains nothing."""
    if kind_of(stage).only_samples:
        return 1
    every = getattr(config, str(kind_of(stage).section)).eval_every
    return EVALUATIONS + (max(0, steps - 1) // every if every else 0)


def evaluation_parts(
    config: Config, stage: str, step: dict[str, Parts], records: int, rows: int, constants: Constants
) -> Parts:
    """Seconds of reading so many held-out records in all evaluations: of a stage that learns from samples, rollouts and
    scores of their prompts, one response to each; else forward passes over them, and, of a policy, a response to each, so
    many `rows` at a time."""
    kind = kind_of(stage)
    share = records / getattr(getattr(config, str(kind.section)), kind.batch_key)
    if samples_responses_in(stage):
        if config.rollout.samples_per_prompt > 1:
            single = replace(config, rollout=replace(config.rollout, samples_per_prompt=1))
            step = step_seconds(single, stage, kind.phase_flops(single, 2), plan_batches(single, stage), constants)
        parts = merge(step["rollout"], step["score"])
    elif kind.only_samples:
        parts, share = merge(step["rollout"], step["score"]), share * kind.copies(config)
    else:
        parts = {name: seconds / 3 for name, seconds in step["train"].items() if name != "optimizer"}
    parts = {name: share * seconds for name, seconds in parts.items()}
    if kind.samples_to_evaluate:
        return merge(parts, answering_seconds(config, kind, records, rows, constants))
    return parts


def saving_parts(config: Config, stage: str, seconds: float, steps: int, constants: Constants) -> Parts:
    """Seconds of writing checkpoints and, at the end, models; each node writes its ranks' share."""
    rules, rate = config.checkpoint, constants.disk_gb_s * 1e9
    by_time = seconds / 60 / rules.every_minutes if rules.every_minutes else 0.0
    by_steps = steps / rules.every_steps if rules.every_steps else 0.0
    state = state_on_disk(config, stage) / config.hardware.nodes
    return {"checkpoints": int(max(by_time, by_steps)) * state / rate, "models": saved_bytes(config, stage) / rate}
