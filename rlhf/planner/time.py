"""How long a stage takes, by formula: each phase of a step as parts that are computed, read, sent and started.

Operations come from the stage's own count (rlhf/planner/flops.py), bytes from its shapes. Both are divided by the shares of
a device's data sheet that rlhf/planner/constants.py states. Pure: no torch. Seconds, unless a name says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlhf.catalog.estimator import has_reference
from rlhf.catalog.role import Role
from rlhf.catalog.stage import StageKind, kind_of
from rlhf.config.derive import Batches, is_reference_shared, is_reward_shared, ranks, samples_responses_in
from rlhf.config.schema import Config, Model
from rlhf.planner.batches import rollout_rows
from rlhf.planner.cache import list_prompts_read
from rlhf.planner.constants import ADAM_BYTES, Constants
from rlhf.planner.decode import decoded_weight_bytes
from rlhf.planner.flops import forward_flops, generation_flops
from rlhf.planner.memory import bytes_per_element, cache_bytes_per_token, count_held, count_trained, record_tokens

# Passes over the blocks that a step of training is worth: forward, and twice that backward.
TRAINING_PASSES = 3
GB = 1e9

Parts = dict[str, float]


@dataclass(frozen=True)
class Rates:
    """What a device and its links do in a second: operations and bytes."""

    flops: float
    elements: float
    decoding: float
    link: float
    host: float
    update: float
    launch: float


def find_rates(config: Config, constants: Constants) -> Rates:
    """Return the rates of the configuration's hardware. Collectives run at the pace of the narrowest link that all of them
    cross: of several nodes, the network of one."""
    hardware = config.hardware
    peak = getattr(hardware.peak_tflops, config.precision.dtype) or hardware.peak_tflops.fp32
    link = hardware.link_gb_s / 2
    if hardware.nodes > 1:
        link = min(link, hardware.network_gb_s)
    return Rates(
        flops=peak * 1e12 * constants.matmul_efficiency,
        elements=hardware.memory_bandwidth_gb_s * GB * constants.memory_efficiency,
        decoding=hardware.memory_bandwidth_gb_s * GB * constants.decode_efficiency,
        link=link * GB * constants.link_efficiency,
        host=hardware.host_link_gb_s * GB * constants.link_efficiency,
        update=constants.host_update_gb_s * GB,
        launch=constants.launch_seconds,
    )


def step_seconds(
    config: Config, stage: str, flops: Mapping[str, int], plan: Batches, constants: Constants, answers: int = 2
) -> dict[str, Parts]:
    """Seconds of a step by phase and part; `flops` are its operations by phase, over all ranks. A record of comparisons has
    so many `answers`."""
    rates = find_rates(config, constants)
    if samples_responses_in(stage):
        return sampling_step(config, stage, flops, plan, rates, constants)
    if kind_of(stage).only_samples:
        return answering_step(config, stage, flops, plan, rates, constants)
    roles = kind_of(stage).roles(config)
    sequences = plan.per_rank * (answers if kind_of(stage).sequences(config) > 1 else 1)
    work = sum(pass_bytes(role.model, config, sequences, record_tokens(config), constants) * passes(role) for role in roles)
    parts = compute(flops["train"] / plan.ranks, work, launches(roles, plan.accumulation), rates)
    return {"train": merge(parts, *(exchange(role, config, plan.accumulation, 1, rates) for role in roles))}


def passes(role: Role) -> int:
    """Forward passes that a step is worth for a role: one if it only reads."""
    return 1 if role.lora is None else TRAINING_PASSES + role.recomputed


def launches(roles: list[Role], times: int) -> int:
    """Layers that are started in so many micro-batches."""
    return times * sum(role.model.num_hidden_layers * passes(role) for role in roles)


def pass_bytes(model: Model, config: Config, sequences: int, length: int, constants: Constants) -> float:
    """Bytes that the element-wise operations of a forward pass over sequences of this length read and write."""
    residual = constants.element_passes * model.hidden_size
    scores = constants.score_passes * model.num_attention_heads * length
    tokens = sequences * length
    return bytes_per_element(config.precision.dtype) * model.num_hidden_layers * tokens * (residual + scores)


def compute(flops: float, moved: float, layers: float, rates: Rates) -> Parts:
    """Seconds of one device's operations and of the bytes they move, or of starting so many layers if that takes longer."""
    parts = {"compute": flops / rates.flops, "memory": moved / rates.elements}
    waiting = layers * rates.launch - sum(parts.values())
    return {**parts, "launch": waiting} if waiting > 0 else parts


def exchange(role: Role, config: Config, micro_batches: int, updates: int, rates: Rates) -> Parts:
    """Seconds of what an optimiser step of a trained role sends, or of what a frozen one gathers, in so many micro-batches,
    and of its update."""
    size, world, zero = bytes_per_element(config.precision.dtype), ranks(config), role.zero
    weights, trained = size * count_held(role), size * count_trained(role)
    parts: Parts = {}
    if world > 1:
        sent = 0.0
        if zero.stage == 3:
            gathers = 1 if role.lora is None else 2 + role.recomputed
            sent += weights * gathers * micro_batches
        if role.lora is not None:
            reductions = micro_batches if zero.stage >= 2 else updates
            sent += trained * (reductions + (updates if 0 < zero.stage < 3 else reductions if zero.stage == 0 else 0))
        parts["communication"] = sent / rates.link
    if zero.offload_param:
        parts["offload"] = weights / world * passes(role) * micro_batches / rates.host
    if role.lora is not None:
        parts = merge(parts, update_seconds(role, config, micro_batches, updates, rates))
    return parts


def update_seconds(role: Role, config: Config, micro_batches: int, updates: int, rates: Rates) -> Parts:
    """Seconds of Adam's own step: on the device, or on the host with gradients sent there and weights sent back."""
    size, zero = bytes_per_element(config.precision.dtype), role.zero
    shares = ranks(config) if zero.stage >= 1 or config.precision.dtype != "fp32" else 1
    share = count_trained(role) / shares
    if not zero.offload_optimizer:
        return {"optimizer": updates * ADAM_BYTES * share / rates.elements}
    return {
        "offload": size * share * (micro_batches + updates) / rates.host,
        "optimizer": updates * ADAM_BYTES * share / rates.update,
    }


def sampling_step(
    config: Config, stage: str, flops: Mapping[str, int], plan: Batches, rates: Rates, constants: Constants
) -> dict[str, Parts]:
    """Seconds of a rollout, its scoring and its updates."""
    roles = kind_of(stage).roles(config)
    actor, *critics = learners = [role for role in roles if role.lora is not None]
    own = max(1, config.ppo.rollout_batch_size // plan.ranks)
    length, updates = config.data.max_prompt_tokens + config.rollout.max_new_tokens, kind_of(stage).updates(config)
    seen = own * config.ppo.update_epochs
    scored = -(-own // plan.micro)
    trained = -(-seen // plan.micro)
    readers = reading_roles(config, roles)
    moved = sum(pass_bytes(role.model, config, own, length, constants) for role in readers)
    started = scored * sum(role.model.num_hidden_layers for role in readers)
    score = compute(flops["score"] / plan.ranks, moved, started, rates)
    for role in readers:
        score = merge(score, reading_exchange(role, config, scored, rates))
    moved = sum(pass_bytes(role.model, config, seen, length, constants) * passes(role) for role in learners)
    update = compute(flops["update"] / plan.ranks, moved, launches(learners, trained), rates)
    update = merge(update, *(exchange(role, config, trained, updates, rates) for role in learners))
    if config.ppo.offload_idle:
        score = merge(score, {"offload": idle_bytes(config, roles, critics) / rates.host})
    return {
        "rollout": rollout_seconds(config, actor, flops["rollout"], own, rollout_rows(config, stage), rates, constants),
        "score": score,
        "update": update,
    }


def answering_step(
    config: Config, stage: str, flops: Mapping[str, int], plan: Batches, rates: Rates, constants: Constants
) -> dict[str, Parts]:
    """Seconds of sampling and of scoring, of a stage that trains nothing: the first of its models samples, the others
    score."""
    policy, *judges = kind_of(stage).roles(config)
    length, passes = config.data.max_prompt_tokens + config.rollout.max_new_tokens, -(-plan.per_rank // plan.micro)
    moved = sum(pass_bytes(role.model, config, plan.per_rank, length, constants) for role in judges)
    started = passes * sum(role.model.num_hidden_layers for role in judges)
    score = compute(flops["score"] / plan.ranks, moved, started, rates)
    for role in judges:
        score = merge(score, reading_exchange(role, config, passes, rates))
    rows = rollout_rows(config, stage)
    rollout = rollout_seconds(config, policy, flops["rollout"], plan.per_rank, rows, rates, constants)
    return {"rollout": rollout, "score": score}


def reading_roles(config: Config, roles: list[Role]) -> list[Role]:
    """Return the models that score a rollout: a frozen one that shares another's weights reads with them, and counts
    again."""
    learners = [role for role in roles if role.lora is not None]
    shared = learners[:1] if has_reference(config) and is_reference_shared(config) else []
    return [*roles, *shared, *(learners[1:] if is_reward_shared(config) else [])]


def reading_exchange(role: Role, config: Config, micro_batches: int, rates: Rates) -> Parts:
    """Seconds of gathering a role's weights for so many forward passes."""
    weights = bytes_per_element(config.precision.dtype) * count_held(role)
    parts: Parts = {}
    if ranks(config) > 1 and role.zero.stage == 3:
        parts["communication"] = weights * micro_batches / rates.link
    if role.zero.offload_param:
        parts["offload"] = weights / ranks(config) * micro_batches / rates.host
    return parts


def idle_bytes(config: Config, roles: list[Role], critics: list[Role]) -> float:
    """Bytes that ppo.offload_idle moves per rollout and device: frozen models once, the critic, if there is one, and its
    state there and back, twice."""
    size, world = bytes_per_element(config.precision.dtype), ranks(config)
    frozen = sum(size * count_held(role) / (world if role.zero.stage == 3 else 1) for role in roles if role.lora is None)
    critic_state = sum(size * count_held(critic) + 12 * count_trained(critic) / world for critic in critics)
    return frozen + 4 * critic_state


def rollout_seconds(
    config: Config, actor: Role, flops: int, own: int, rows: int, rates: Rates, constants: Constants
) -> Parts:
    """Seconds of sampling: the prompts at the pace of a forward pass, then a token at a time at the pace of memory, since
    a decode step reads all weights and the cache (rlhf/planner/decode.py). `rows` are sampled at a time, of all ranks that
    share a layer together."""
    rollout, prompt, new = config.rollout, config.data.max_prompt_tokens, config.rollout.max_new_tokens
    together, world = rollout.tensor_parallel, ranks(config)
    parts_of_rollout = -(-own * together // rows)
    dtype = config.precision.dtype
    read = decoded_weight_bytes(actor.model, dtype) / together * new * parts_of_rollout
    cached = own * (prompt * new + new * (new - 1) // 2) * cache_bytes_per_token(actor.model, dtype)
    arithmetic = flops / world / rates.flops
    prefilled = len(list_prompts_read(rollout, [prompt] * own))
    prefill = pass_bytes(actor.model, config, prefilled, prompt, constants) / rates.elements
    decoding = (read + cached) / rates.decoding
    started = actor.model.num_hidden_layers * new * parts_of_rollout * rates.launch
    found = {"compute": arithmetic, "memory": prefill, "decoding": max(decoding, started)}
    weights = bytes_per_element(dtype) * count_held(actor)
    sent = 0.0
    if actor.zero.stage == 3 and world > 1:
        layerwise = rollout.gather == "layers" and together == 1
        sent = weights * new * parts_of_rollout if layerwise else weights
    found["communication"] = sent / rates.link + sharing_seconds(config, actor, rows, parts_of_rollout, rates)
    if actor.zero.offload_param:
        again = new * parts_of_rollout if rollout.gather == "layers" and together == 1 else 1
        found["offload"] = weights / world * again / rates.host
    return found


def answering_seconds(config: Config, kind: StageKind, prompts: int, together: int, constants: Constants) -> Parts:
    """Seconds of sampling a response to each of so many prompts, so many `together`, and of reading it by the policy and by
    the one that training started from."""
    policy, own = kind.roles(config)[0], -(-prompts // ranks(config))
    rows = together * config.rollout.tensor_parallel
    config = replace(config, rollout=replace(config.rollout, micro_batch_size=rows))
    prompt, new = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    sampled = generation_flops(policy.model, [prompt] * own, [new] * own, policy.lora)
    read = forward_flops(policy.model, [prompt + new] * own, new * own, policy.lora)
    rates = find_rates(config, constants)
    rollout = rollout_seconds(config, policy, ranks(config) * sampled, own, rows, rates, constants)
    return merge(rollout, {"compute": 2 * read / rates.flops})


def reading_seconds(config: Config, kind: StageKind, records: int, together: int, constants: Constants) -> Parts:
    """Seconds of a forward pass of each model of a stage over the texts of so many records of the longest length, so many
    texts `together`."""
    length, rates = record_tokens(config), find_rates(config, constants)
    texts = -(-records * kind.sequences(config) // ranks(config))
    passes, parts = -(-texts // together), Parts()
    for role in kind.roles(config):
        moved = pass_bytes(role.model, config, texts, length, constants)
        read = compute(forward_flops(role.model, [length] * texts, 0), moved, passes * role.model.num_hidden_layers, rates)
        parts = merge(parts, read, reading_exchange(role, config, passes, rates))
    return parts


def sharing_seconds(config: Config, actor: Role, rows: int, parts_of_rollout: int, rates: Rates) -> float:
    """Seconds of the two sums per layer and token of ranks that share each layer."""
    together = config.rollout.tensor_parallel
    if together == 1:
        return 0.0
    moved = rows * actor.model.hidden_size * bytes_per_element(config.precision.dtype)
    each = 2 * moved / (config.hardware.link_gb_s / 2 * GB) + LATENCY
    return 2 * actor.model.num_hidden_layers * config.rollout.max_new_tokens * parts_of_rollout * each


# Of a sum over the devices of a node, at least (NCCL over NVLink).
LATENCY = 10e-6


def merge(*parts: Parts) -> Parts:
    """Sum seconds by part."""
    total: Parts = {}
    for part in parts:
        for name, seconds in part.items():
            total[name] = total.get(name, 0.0) + seconds
    return {name: seconds for name, seconds in total.items() if seconds > 0}


def read_seconds(config: Config, models: list[Model], constants: Constants) -> float:
    """Seconds to read models from the disk, once per node."""
    size = bytes_per_element(config.precision.dtype)
    return sum(size * model.num_parameters for model in models) / (constants.disk_gb_s * GB)
