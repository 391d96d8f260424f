"""What hardware decides: for every key that is `auto`, the value of the fastest layout that fits.

A layout is a ZeRO stage with its offloads for each role, gradient checkpointing, micro-batches, and how a rollout gathers
weights. Candidates are compared by the plan of one step (rlhf/planner/time.py) among those that fit by the plan of memory
(rlhf/planner/memory.py). A value that is given by hand is its key's only candidate. No choice changes a result beyond
rounding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.role import Role
from rlhf.catalog.stage import kind_of
from rlhf.config.derive import Batches, divisors, measured_stage, ranks, samples_responses_in
from rlhf.config.keys import AUTO_KEYS, get_key
from rlhf.config.metadata import AUTO
from rlhf.config.rewards import count_reward_models
from rlhf.config.schema import ZEROS, Config
from rlhf.planner.batches import rollout_rows, texts_read_together
from rlhf.planner.constants import load_constants
from rlhf.planner.host import host_bytes
from rlhf.planner.memory import GIB, Batch, peak_bytes, phase_bytes
from rlhf.planner.time import step_seconds

# Share of a node's host memory that a layout may take; the rest is the system's and the page cache's.
HOST_SHARE = 0.9
# A layout that is this much faster is worth one that is less plain.
GAIN = 0.98
# ZeRO layouts as (stage, offload_optimizer, offload_param), the plainest first: of a model that learns, and of one that
# only reads.
LEARNING = (
    (0, False, False), (1, False, False), (2, False, False), (3, False, False), (2, True, False), (3, True, False),
    (3, True, True),
)  # fmt: skip
READING = ((0, False, False), (3, False, False), (3, False, True))
Sharding = tuple[int, bool, bool]


@dataclass(frozen=True)
class Choice:
    """A stage's configuration without `auto`, the keys that were chosen with their values, and the reason."""

    config: Config
    layout: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A layout: the configuration with it, the seconds of a step, and the bytes that a device or a node lacks for it."""

    config: Config
    seconds: float
    missing: float


def is_automatic(config: Config) -> bool:
    """Whether some key is left to the planner."""
    return any(get_key(config, key) == AUTO for key in AUTO_KEYS if key != "rollout.gather")


def choose_layout(config: Config, stage: str, pinned: Mapping[str, Any] | None = None) -> Choice:
    """Replace every `auto` by the value that suits the stage best.

    Args:
        config: The configuration, its values within their ranges.
        stage: The stage that is to run with it.
        pinned: Values that the stage's checkpoint was saved with, by key; they stand in for `auto`.
    """
    given = {key: value for key, value in (pinned or {}).items() if key in AUTO_KEYS and get_key(config, key) == AUTO}
    config = with_keys(config, given)
    if not is_automatic(config):
        return Choice(config, {}, "")
    if not kind_of(stage).trains:
        return lay_out_reading(config, stage)
    chosen, reason = search(Subject(config, measured_stage(config, stage), layout_text(config)))
    left = {key: value for key, value in chosen.items() if get_key(config, key) in (AUTO, None)}
    own = {key: value for key, value in chosen.items() if concerns(key, config, measured_stage(config, stage))}
    return Choice(with_keys(config, left), {**given, **own}, reason)


def lay_out_reading(config: Config, stage: str) -> Choice:
    """Replace every `auto` for a stage that trains nothing: its models are whole on each device where they fit, else
    sharded, and what concerns training is off."""
    off: dict[str, Any] = {key: None if key == "rollout.micro_batch_size" else False for key in AUTO_KEYS}
    off |= {"rollout.gather": "all", "rollout.tensor_parallel": 1}
    found: dict[str, Any] = {}
    for sharding in READING if config.hardware.device == "cuda" else READING[:1]:
        names = zip(("stage", "offload_optimizer", "offload_param"), sharding, strict=True)
        values = off | {f"{zero}.{name}": value for name, value in names for zero in ZEROS}
        found = {key: value for key, value in values.items() if get_key(config, key) == AUTO}
        size = texts_read_together(config, stage)
        if missing_bytes(with_keys(config, found), stage, Batch(size, size)) <= 0:
            break
    own = {key: value for key, value in found.items() if concerns(key, config, stage)}
    return Choice(with_keys(config, found), own, "the plainest layout with which its models fit")


def with_keys(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of some keys of its groups; groups that stay the same are shared."""
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, {})[name] = value
    return replace(config, **{group: replace(getattr(config, group), **names) for group, names in groups.items()})


def concerns(key: str, config: Config, stage: str) -> bool:
    """Whether a key says how this stage is laid out."""
    kind, group = kind_of(stage), key.rpartition(".")[0]
    if group in ZEROS:
        return group in groups_of(config, stage)
    return group == kind.section or (group == "rollout" and kind_of(stage).samples)


def groups_of(config: Config, stage: str) -> dict[str, Role]:
    """Return the ZeRO groups that a stage's models have, with the first model of each."""
    found: dict[str, Role] = {}
    for role in kind_of(stage).roles(config):
        group = next(zero for zero in ZEROS if getattr(config, zero) is role.zero)
        found.setdefault(group, role)
    return found


def layout_text(config: Config) -> str:
    """All that a layout depends on, as text: points of a sweep that differ in nothing of it share one search."""
    sections = [
        (s.batch_size, s.micro_batch_size, s.gradient_checkpointing) for s in (config.sft, config.reward, config.ppo)
    ]
    ppo = config.ppo
    ppo_keys = (
        ppo.rollout_batch_size, ppo.update_epochs, ppo.critic, ppo.critic_gradient_checkpointing, ppo.offload_idle, ppo.ema,
        ppo.ptx_coef > 0, ppo.estimator, ppo.kl_placement, ppo.reference_refresh, count_reward_models(config),
    )  # fmt: skip
    data = config.data.max_prompt_tokens, config.data.max_response_tokens
    loras = [(lora.rank, lora.only, lora.target_modules) for lora in (config.lora, config.critic_lora, config.reward_lora)]
    zeros = [getattr(config, zero) for zero in ZEROS]
    parts = (
        config.model, config.reward_model, config.hardware, config.precision, zeros, loras, data, sections, ppo_keys,
        config.rollout, config.plan.constants, config.reward.grouped, config.bench.what,
    )  # fmt: skip
    return repr(parts)


@dataclass(frozen=True)
class Subject:
    """What a search is about; two of the same stage and `text` are equal."""

    config: Config
    stage: str
    text: str

    def __hash__(self) -> int:
        return hash((self.stage, self.text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subject) and (self.stage, self.text) == (other.stage, other.text)


@lru_cache(maxsize=4096)
def search(subject: Subject) -> tuple[dict[str, Any], str]:
    """Find the value of every key that may be `auto`, and say why: of the fastest layout that fits, or else of the one that
    comes nearest to that."""
    config, stage = subject.config, subject.stage
    best: Candidate | None = None
    tried = 0
    for idle in options(config, "ppo.offload_idle", (False, True) if config.hardware.device == "cuda" else (False,)):
        for layout, flops in layouts(with_keys(config, {"ppo.offload_idle": idle}), stage):
            tried += 1
            if best is not None and best.missing <= 0 and fastest(layout, stage, flops) >= GAIN * best.seconds:
                continue
            candidate = fill_batches(layout, stage, flops)
            if best is None or is_better(candidate, best):
                best = candidate
        if best is not None and best.missing <= 0:
            break
    assert best is not None  # one layout at least is tried
    section = kind_of(stage).section
    keys = [*AUTO_KEYS, f"{section}.micro_batch_size"]
    chosen = {key: get_key(best.config, key) for key in keys}
    if best.missing > 0:
        return chosen, f"nothing fits: the least of {tried} layouts lacks {best.missing / GIB:.1f} GiB"
    return chosen, f"fastest of {tried} layouts that were tried"


def is_better(candidate: Candidate, best: Candidate) -> bool:
    """Whether a candidate fits where the best one does not, is clearly faster, or comes nearer to fitting."""
    if best.missing > 0:
        return candidate.missing < best.missing
    return candidate.missing <= 0 and candidate.seconds < GAIN * best.seconds


def options(config: Config, key: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values to try for a key: those, or its own if it is given."""
    own = get_key(config, key)
    return values if own == AUTO else (own,)


def layouts(config: Config, stage: str) -> Iterator[tuple[Config, dict[str, int]]]:
    """Yield the layouts of a stage but for their micro-batches, each with the operations of a step by phase."""
    groups, flops = groups_of(config, stage), dict[tuple[Any, ...], dict[str, int]]()
    section = kind_of(stage).section
    recomputing = [] if kind_of(stage).only_samples else [f"{section}.gradient_checkpointing"]
    if samples_responses_in(stage):
        recomputing.append("ppo.critic_gradient_checkpointing")
    others = [key for key in AUTO_KEYS if key.endswith("gradient_checkpointing") and key not in recomputing]
    config = with_keys(config, {key: False for key in others if get_key(config, key) == AUTO})
    for shardings in sharding_choices(config, groups):
        for recomputed in product(*(options(config, key, (False, True)) for key in recomputing)):
            laid_out = with_shardings(config, shardings, groups)
            laid_out = with_keys(laid_out, dict(zip(recomputing, recomputed, strict=True)))
            if recomputed not in flops:
                flops[recomputed] = kind_of(stage).phase_flops(laid_out, 2)
            for chosen in gathering_choices(laid_out, stage):
                yield chosen, flops[recomputed]


def sharding_choices(config: Config, groups: dict[str, Role]) -> Iterator[dict[str, Sharding]]:
    """Combine ZeRO layouts. Models that only read share one; a second model that learns has that of the first, or is not
    sharded, which suffices where it is small."""
    learning = [group for group, role in groups.items() if role.lora is not None]
    reading = [group for group in groups if group not in learning]
    if not learning:
        yield from (dict.fromkeys(reading, third) for third in READING if all(is_open(config, g, third) for g in reading))
        return
    for first in LEARNING:
        for second in dict.fromkeys((first, LEARNING[0], LEARNING[2])) if len(learning) > 1 else (first,):
            for third in READING if reading else (READING[0],):
                wanted = dict.fromkeys(learning[1:], second) | dict.fromkeys(reading, third) | {learning[0]: first}
                if all(is_open(config, group, sharding) for group, sharding in wanted.items()):
                    yield wanted


def is_open(config: Config, group: str, sharding: Sharding) -> bool:
    """Whether a layout agrees with what is given by hand, and does something on this hardware. Of a layout that is given
    whole, the plainest in the list stands for it."""
    zero = getattr(config, group)
    given = (zero.stage, zero.offload_optimizer, zero.offload_param)
    if AUTO not in given:
        return sharding == LEARNING[0]
    if config.hardware.device == "cpu" and (sharding[1] or sharding[2]):
        return False
    saves = zero.zero_quantized_weights or zero.zero_quantized_gradients or zero.zero_hpz_partition_size is not None
    if saves and sharding[0] != 3:
        return False
    if ranks(config) == 1 and sharding in LEARNING[1:4]:
        return sharding[0] == zero.stage or saves  # a single rank has nothing to divide
    return all(own in (AUTO, value) for own, value in zip(given, sharding, strict=True))


def with_shardings(config: Config, shardings: dict[str, Sharding], groups: dict[str, Role]) -> Config:
    """Return the configuration with these ZeRO layouts where they are `auto`; groups that the stage does not read get the
    first of them."""
    first = next(iter(shardings.values()))
    values: dict[str, Any] = {}
    for group in ZEROS:
        zero = getattr(config, group)
        sharding = shardings.get(group, first)
        for name, value in zip(("stage", "offload_optimizer", "offload_param"), sharding, strict=True):
            if getattr(zero, name) == AUTO:
                values[f"{group}.{name}"] = value
    return with_keys(config, values)


def gathering_choices(config: Config, stage: str) -> Iterator[Config]:
    """How a rollout may gather a sharded actor, the fastest first: all of it, a share of each layer, layer by layer."""
    rollout, model = config.rollout, config.model
    sharded = kind_of(stage).samples and config.zero.stage == 3
    given = rollout.tensor_parallel
    whole = "all" if rollout.gather == AUTO and sharded else rollout.gather
    yield with_keys(config, {"rollout.tensor_parallel": 1 if given == AUTO else given, "rollout.gather": whole})
    family = FAMILIES.get(model.family)
    if given == AUTO and sharded and rollout.engine == "hybrid" and family is not None and family.shareable:
        parts = model.num_attention_heads, model.num_key_value_heads, model.intermediate_size
        for together in divisors(config.hardware.gpus_per_node)[1:]:
            if all(part % together == 0 for part in parts):
                yield with_keys(config, {"rollout.tensor_parallel": together, "rollout.gather": whole})
    if given in (AUTO, 1) and sharded and rollout.gather == AUTO and rollout.engine == "hybrid":
        yield with_keys(config, {"rollout.tensor_parallel": 1, "rollout.gather": "layers"})


def fill_batches(config: Config, stage: str, flops: dict[str, int]) -> Candidate:
    """Return a layout with the largest micro-batches that fit it."""
    sizes, limits = batch_sizes(config, stage)
    room = HOST_SHARE * config.hardware.host_memory_gib * GIB if config.hardware.device == "cuda" else float("inf")
    least = max(missing_bytes(config, stage, Batch(sizes[0], limits[0])), host_bytes(config, stage) - room)
    if least > 0:
        return Candidate(with_batches(config, stage, Batch(sizes[0], limits[0])), 0.0, least)
    rows = largest(limits, lambda count: missing_bytes(config, stage, Batch(sizes[0], count)))
    micro = largest(sizes, lambda count: missing_bytes(config, stage, Batch(count, rows)))
    filled = with_batches(config, stage, Batch(micro, rows))
    return Candidate(filled, seconds_of(filled, stage, flops, micro), least)


def batch_sizes(config: Config, stage: str) -> tuple[list[int], list[int]]:
    """Return the micro-batches that a rank's batch can be cut into, and the responses that may be sampled at a time; one
    of each where they are given."""
    section, world, rollout = str(kind_of(stage).section), ranks(config), config.rollout
    own, given = max(1, getattr(config, section).batch_size // world), getattr(config, section).micro_batch_size
    sizes = divisors(own) if given is None else [given]
    kind = kind_of(stage)
    if (kind.samples_responses or kind.only_samples) and rollout.micro_batch_size == AUTO:
        return sizes, divisors(max(1, get_key(config, f"{section}.{kind.batch_key}") // world))
    return sizes, [rollout_rows(config, stage)]


def with_batches(config: Config, stage: str, batch: Batch) -> Config:
    """Return the configuration with these micro-batches where they are left open."""
    values: dict[str, Any] = {f"{kind_of(stage).section}.micro_batch_size": batch.micro}
    if config.rollout.micro_batch_size == AUTO:
        values["rollout.micro_batch_size"] = batch.rows or None
    return with_keys(config, values)


def fastest(config: Config, stage: str, flops: dict[str, int]) -> float:
    """Seconds of a step if every batch fitted: no layout's are fewer."""
    sizes, limits = batch_sizes(config, stage)
    return seconds_of(with_batches(config, stage, Batch(sizes[-1], limits[-1])), stage, flops, sizes[-1])


def seconds_of(config: Config, stage: str, flops: dict[str, int], micro: int) -> float:
    """Seconds of a step in micro-batches of this size."""
    own = max(1, getattr(config, str(kind_of(stage).section)).batch_size // ranks(config))
    plan = Batches(ranks(config), own, micro, max(1, own // micro))
    constants = load_constants(config.plan.constants, config.hardware.device)
    phases = step_seconds(config, stage, flops, plan, constants)
    return sum(sum(parts.values()) for parts in phases.values())


def missing_bytes(config: Config, stage: str, batch: Batch) -> float:
    """Return the bytes that a device lacks in the phase that takes most."""
    return peak_bytes(phase_bytes(config, stage, batch)) - config.hardware.memory_gib * GIB


def largest(sizes: list[int], missing: Any) -> int:
    """Return the largest of some sizes, in order, for which nothing is missing, or the smallest: found by halving."""
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if missing(sizes[middle]) <= 0 else (low, middle - 1)
    return sizes[low]
