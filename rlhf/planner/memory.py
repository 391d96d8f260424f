"""How much of a device's memory a stage takes, by formula, per role and phase.

Micro-batches (rlhf/planner/batches.py), the plan and the choice of a layout (rlhf/planner/auto.py) read these formulas.
Pure: no torch, no GPU, no weights. All sizes are in bytes unless a name says GiB.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rlhf.catalog.estimator import has_reference
from rlhf.catalog.role import Role
from rlhf.catalog.stage import kind_of
from rlhf.config.derive import is_reference_shared, max_sequence, measured_stage, ranks, samples_responses_in
from rlhf.config.keys import get_key
from rlhf.config.schema import Config, Model, Zero
from rlhf.planner.cache import cached_tokens, count_prefilled, packs_weights

GIB = 2**30
# Share of a GPU's memory that is left free: what the allocator cannot use between blocks of unlike sizes.
FRAGMENTATION = 0.06
# The same on the CPU, a share of activations and logits: the holes that freed blocks leave on glibc's heap, where the next
# aligned block rarely fits them. Measured: 0.4 to 0.9. Returning them to the system would make steps 15 % slower.
HEAP_HOLES = 0.65
# A CUDA context with its kernels, NCCL's buffers and cuBLAS's workspace, on each GPU.
CONTEXT = int(1.2 * GIB)
# A process with torch, transformers and DeepSpeed imported, part of a device's memory on the CPU: a stage of
# model=opt-tiny takes 0.34 GiB (torch 2.13), less its libraries' files. Beside a GPU, with CUDA's: estimated.
PROCESS, PROCESS_OF_GPU = int(0.33 * GIB), int(1.5 * GIB)
# Gradients that DeepSpeed copies to sum them over ranks at ZeRO stage 0 (buffered_allreduce_fallback).
REDUCED_TOGETHER = 500_000_000
# Tokens whose logits rlhf/algo/logprobs.py holds in float32 at once, and the copies that it makes of them.
LOGITS_CHUNK, LOGITS_COPIES = 1024, 3
# The same of a decode step's logits: log-probabilities, probabilities, and their sums in double precision
# (rlhf/rollout/sampling.py).
SAMPLING_COPIES = 4
# What captured graphs of decode steps keep beside the cache.
GRAPHS = GIB // 2

Bytes = dict[str, float]


def bytes_per_element(dtype: str) -> int:
    """Size of one weight or activation."""
    return 4 if dtype == "fp32" else 2


def adapter_parameters(model: Model, rank: int) -> int:
    """Weights of adapters of this rank on every matrix of the blocks: rank * (inputs + outputs) each."""
    queries, keys = (heads * model.head_dim for heads in (model.num_attention_heads, model.num_key_value_heads))
    attention = 2 * (model.hidden_size + queries) + 2 * (model.hidden_size + keys)
    matrices = 3 if model.gated_mlp else 2
    return rank * model.num_hidden_layers * (attention + matrices * (model.hidden_size + model.intermediate_size))


def weight_bytes(model: Model, dtype: str) -> int:
    """Return a whole model's weights."""
    return model.num_parameters * bytes_per_element(dtype)


def cache_bytes_per_token(model: Model, dtype: str) -> int:
    """Return what one token takes in a key-value cache: a key and a value of every key-value head of every layer."""
    return 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * bytes_per_element(dtype)


def count_trained(role: Role) -> int:
    """Return the parameters of a role that are trained."""
    if role.lora is None:
        return 0
    adapters = adapter_parameters(role.model, role.lora.rank)
    return adapters if role.lora.rank > 0 and role.lora.only else role.parameters + adapters


def count_held(role: Role) -> int:
    """Return the parameters of a role, adapters included."""
    return role.parameters + (adapter_parameters(role.model, role.lora.rank) if role.lora else 0)


def optimizer_bytes_per_parameter(config: Config, zero: Zero) -> int:
    """Master weight and Adam's two moments in float32; fp32 at ZeRO stage 0 needs no master weight."""
    return 12 if config.precision.dtype != "fp32" or zero.stage >= 1 else 8


def state_bytes(role: Role, config: Config) -> Bytes:
    """Weights, gradients and optimiser state of a role on one device.

    Mixed precision keeps 2 + 2 bytes of weight and gradient and 12 of master weight and Adam's moments per trained
    parameter; fp32 keeps 4 + 4 + 8, and DeepSpeed's ZeRO a master weight there too. ZeRO divides by the ranks what its
    stage shards (arXiv 1910.02054, section 5); in mixed precision stage 0 is run as stage 1. Gradients of an offloaded
    optimiser at stages 2 and 3 leave the device as they come.
    """
    size, world, zero = bytes_per_element(config.precision.dtype), ranks(config), role.zero
    sharded, half, trained = zero.stage == 3, config.precision.dtype != "fp32", count_trained(role)
    weights = 0.0 if zero.offload_param else size * count_held(role) / (world if sharded else 1)
    gradients = size * trained / (world if zero.stage >= 2 else 1)
    if zero.offload_optimizer and zero.stage >= 2:
        gradients = 0.0
    optimizer = optimizer_bytes_per_parameter(config, zero) * trained / (world if half or zero.stage >= 1 else 1)
    average = 4 * trained / (world if sharded else 1) if role.average else 0
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": (0.0 if zero.offload_optimizer else optimizer) + average,
    }


def buffer_bytes(role: Role, config: Config) -> float:
    """Return what ZeRO gathers and reduces through: buckets of gradients and weights, and at stage 3 the layers in
    flight."""
    size, zero, world = bytes_per_element(config.precision.dtype), role.zero, ranks(config)
    if world == 1 and not (zero.offload_param or zero.offload_optimizer):
        return 0.0
    trained, held = count_trained(role), count_held(role)
    copies = 2 if config.hardware.device == "cuda" else 1  # one is filled while the other is sent
    buckets = copies * min(zero.reduce_bucket_size, trained) if zero.stage >= 1 or config.precision.dtype != "fp32" else 0
    layer = held / max(1, role.model.num_hidden_layers)
    gathered = min(held, 2 * layer + min(zero.reduce_bucket_size, held)) if zero.stage == 3 else 0
    return size * (buckets + gathered)


def activation_bytes_per_token(model: Model, dtype: str, checkpointing: bool) -> float:
    """Return what the blocks of a forward pass keep for the backward pass, per token.

    34 bytes per element of width and layer at 2 bytes an activation (arXiv 2205.05198, equation 1, without the attention
    matrix, which fused attention does not keep), scaled by the width of the feed-forward layers; or one element per layer,
    and a single layer's, when it is recomputed.
    """
    size, hidden = bytes_per_element(dtype), model.hidden_size
    wide = model.intermediate_size * (3 if model.gated_mlp else 2)
    layer = size * (8 * hidden + wide) + 2 * hidden  # dropout's two masks have a byte an element
    return model.num_hidden_layers * size * hidden + layer if checkpointing else model.num_hidden_layers * layer


def logits_bytes(model: Model, dtype: str, tokens: int) -> float:
    """Logits of so many tokens with their gradient, and the float32 copies of a chunk of them."""
    size, vocabulary = bytes_per_element(dtype), model.vocab_size
    copies = 1 if dtype == "fp32" else LOGITS_COPIES  # nothing is converted, and the rest is done in place
    return 2 * size * vocabulary * tokens + 4 * copies * vocabulary * min(tokens, LOGITS_CHUNK)


def forward_bytes_per_token(model: Model, dtype: str) -> float:
    """Return what a forward pass alone holds per token: the residual stream and a layer's intermediates."""
    wide = model.intermediate_size * (2 if model.gated_mlp else 1)
    return bytes_per_element(dtype) * (6 * model.hidden_size + wide)


@dataclass(frozen=True)
class Batch:
    """The sequences of a stage that a device holds at a time: `micro` of a forward pass, and `rows` of responses being
    sampled."""

    micro: int
    rows: int


def phase_bytes(config: Config, stage: str, batch: Batch) -> dict[str, Bytes]:
    """Bytes on one device by phase and component: weights, gradients, optimizer, activations, logits, cache, graphs,
    gather, packed, context and reserve."""
    name = measured_stage(config, stage)
    roles = kind_of(name).roles(config)
    state = add_bytes(state_bytes(role, config) for role in roles)
    is_scorer = all(card.scorer for card in kind_of(name).cards.values())
    fixed = {"context": float(CONTEXT if config.hardware.device == "cuda" else PROCESS)}
    fixed["reserve"] = FRAGMENTATION * config.hardware.memory_gib * GIB if config.hardware.device == "cuda" else 0.0
    trained = [role for role in roles if role.lora is not None]
    phases = {"load": {**state, "gradients": 0.0}}
    if not (kind_of(name).trains or kind_of(name).samples):
        phases = {"score": reading_bytes(config, roles, batch.rows)}
    elif not kind_of(name).trains:
        phases["sample"] = {**state, "gradients": 0.0, **sampling_bytes(config, roles[0], batch.rows)[0]}
    elif samples_responses_in(name):
        phases |= sampling_phases(config, name, roles, state, batch)
    elif kind_of(name).only_samples:
        sampling = sampling_phases(config, name, roles, state, batch)
        phases |= {"rollout": sampling["rollout"], "score": {**sampling["score"], "logits": 0.0}}
    else:
        predicted = count_predicted_tokens(config, name)
        training = training_bytes(config, name, trained, batch.micro, record_tokens(config), predicted)
        phases["train"] = {**state, **training}
        sequences = batch.micro * kind_of(name).sequences(config)
        logits = logits_bytes(roles[0].model, config.precision.dtype, sequences * (predicted or record_tokens(config))) / 2
        phases["evaluate"] = {
            **state,
            "gradients": 0.0,
            "activations": scoring_bytes(config, roles, sequences * record_tokens(config)),
            "logits": 0.0 if is_scorer else logits,
            "gather": max(buffer_bytes(role, config) for role in roles),
        }
        if kind_of(name).samples:
            phases["sample"] = evaluation_bytes(config, roles[0], state, batch.rows)
    return {phase: {**fixed, **parts} for phase, parts in phases.items()}


def record_tokens(config: Config) -> int:
    """Return the longest sequence of a record of training: a prompt with a response of the data."""
    return config.data.max_prompt_tokens + config.data.max_response_tokens


def count_predicted_tokens(config: Config, stage: str) -> int | None:
    """Return the tokens of a sequence whose logits are computed, at most: those that the loss covers; None for all."""
    section = kind_of(stage).section
    covered = "full" if section is None else getattr(getattr(config, section), "loss_on", "completion")
    return config.data.max_response_tokens if covered == "completion" else None


def training_bytes(
    config: Config, stage: str, trained: list[Role], micro: int, tokens: int, logit_tokens: int | None
) -> Bytes:  # fmt: skip
    """Gradients, activations, logits and buffers of training on `micro` records: those of the role that takes most at a
    time, or of the step that ends an update. Scorers have no logits; of a language model `logit_tokens` of each sequence
    have, or all. Roles read one after another; a gradient is there from its role's backward pass to the step."""
    dtype, kind = config.precision.dtype, kind_of(stage)
    sequences = micro * kind.sequences(config)
    is_scorer = all(card.scorer for card in kind.cards.values())
    accumulates = get_key(config, f"{kind.section}.batch_size") > micro * ranks(config)
    gradients = [state_bytes(role, config)["gradients"] for role in trained]
    found: list[Bytes] = []
    for number, role in enumerate(trained):
        has_logits = number == 0 and not is_scorer
        logits = sequences * (tokens if logit_tokens is None else logit_tokens) if has_logits else 0
        kept = accumulates or dtype != "fp32" or role.zero.stage > 0
        parts = {"gradients": sum(gradients if kept else gradients[:number]), "gather": buffer_bytes(role, config)}
        parts["activations"] = sequences * tokens * activation_bytes_per_token(role.model, dtype, role.recomputed)
        parts["logits"] = logits_bytes(role.model, dtype, logits) if logits else 0.0
        if config.hardware.device == "cpu":
            parts["reserve"] = HEAP_HOLES * (parts["activations"] + parts["logits"])
        found.append(parts)
    ending = max(0.0 if is_scorer else tied_bytes(trained[0], dtype), *(reduction_bytes(role, config) for role in trained))
    found.append({"gradients": sum(gradients), "activations": 0.0, "logits": 0.0, "gather": ending})
    return max(found, key=lambda parts: sum(parts.values()))


def tied_bytes(role: Role, dtype: str) -> float:
    """Return what the end of a backward pass takes where the embedding is the head too: both gradients beside their sum."""
    learns = role.model.tie_word_embeddings and count_trained(role) >= role.parameters
    return 2.0 * bytes_per_element(dtype) * role.model.vocab_size * role.model.hidden_size * learns


def reduction_bytes(role: Role, config: Config) -> float:
    """Return what summing a role's gradients over ranks takes: ZeRO's buckets, or without ZeRO copies of the gradients."""
    if ranks(config) == 1 or config.precision.dtype != "fp32" or role.zero.stage > 0:
        return buffer_bytes(role, config)
    return bytes_per_element("fp32") * min(REDUCED_TOGETHER, count_trained(role))


def scoring_bytes(config: Config, roles: list[Role], tokens: int) -> float:
    """Activations of a forward pass over so many tokens of the role that takes most."""
    return max((forward_bytes_per_token(role.model, config.precision.dtype) * tokens for role in roles), default=0.0)


def reading_bytes(config: Config, roles: list[Role], rows: int) -> Bytes:
    """Return what reading so many texts at a time takes of the model that takes most: they are held one after another."""
    dtype, tokens = config.precision.dtype, rows * record_tokens(config)
    found = [
        {
            **state_bytes(role, config),
            "gradients": 0.0,
            "activations": scoring_bytes(config, [role], tokens),
            "logits": logits_bytes(role.model, dtype, tokens) / 2 if role.model is config.model else 0.0,
            "gather": buffer_bytes(role, config),
        }
        for role in roles
    ]
    return max(found, key=lambda parts: sum(parts.values()))


def sampling_phases(config: Config, stage: str, roles: list[Role], state: Bytes, batch: Batch) -> dict[str, Bytes]:
    """Return the phases of a stage that samples: rollout, scoring and updates, and the evaluation, which samples too."""
    dtype, actor, rollout = config.precision.dtype, roles[0], config.rollout
    critics = [role for role in roles[1:] if role.lora is not None]
    idle = [role for role in roles[1:] if role.lora is None]
    prompt, new = config.data.max_prompt_tokens, rollout.max_new_tokens
    sampling, cache = sampling_bytes(config, actor, batch.rows)
    kept = 0.0 if rollout.release_cache else 1.0
    held = {"cache": kept * cache, "graphs": kept * sampling["graphs"]}
    buffers = kept * sampling["gather"]
    without = add_bytes(state_bytes(role, config) for role in (actor, *([] if config.ppo.offload_idle else roles[1:])))
    with_critic = add_bytes(state_bytes(role, config) for role in (actor, *critics))
    updating = with_critic if config.ppo.offload_idle else state
    reads_actor = config.ppo.old_logprobs == "actor" or (has_reference(config) and is_reference_shared(config))
    readers = [role for role in roles if role is not actor or reads_actor]
    logits = logits_bytes(actor.model, dtype, batch.micro * new) / 2
    reused = kept_bytes(config, actor, critics)
    score = {
        "activations": scoring_bytes(config, readers, batch.micro * (prompt + new)) + reused["activations"],
        "logits": (0.0 if all(role.scorer for role in readers) else logits) + reused["logits"],
        "gather": buffers + max(buffer_bytes(role, config) for role in (actor, *critics, *idle)),
    }
    update = training_bytes(config, stage, [actor, *critics], batch.micro, prompt + new, new)
    if config.ppo.ptx_coef > 0:
        texts = training_bytes(config, stage, [actor], batch.micro, max_sequence(config), None)
        update = max(update, texts, key=lambda parts: sum(parts.values()))
    update |= {name: max(update[name], value) for name, value in reused.items()}
    update["gather"] += buffers
    return {
        "rollout": {**without, "gradients": 0.0, **sampling},
        "score": {**state, "gradients": 0.0, **held, **score},
        "update": {**updating, **held, **update},
        "evaluate": {**without, "weights": without["weights"] + start_bytes(config), "gradients": 0.0, **sampling},
    }


def kept_bytes(config: Config, actor: Role, critics: list[Role]) -> Bytes:
    """Return what actor and critic keep of scoring a rank's share of a rollout for its update (ppo.reuse_forward)."""
    ppo, new, dtype = config.ppo, config.rollout.max_new_tokens, config.precision.dtype
    share = ppo.rollout_batch_size // ranks(config) * ppo.reuse_forward
    tokens, kept = share * (config.data.max_prompt_tokens + new), critics + [actor] * (ppo.old_logprobs == "actor")
    each = (activation_bytes_per_token(role.model, dtype, role.recomputed) for role in kept)
    return {
        "activations": tokens * sum(each),
        "logits": logits_bytes(actor.model, dtype, share * new) if actor in kept else 0.0,
    }


def sampling_bytes(config: Config, actor: Role, rows: int) -> tuple[Bytes, float]:
    """Return what sampling so many responses at a time takes beside the models, and the bytes of the cache alone that stays
    between rollouts."""
    rollout, prompt, device = config.rollout, config.data.max_prompt_tokens, config.hardware.device
    dtype, size = config.precision.dtype, bytes_per_element(config.precision.dtype)
    per_token = cache_bytes_per_token(actor.model, dtype) / rollout.tensor_parallel
    cache = cached_tokens(rollout, device, rows, prompt + rollout.max_new_tokens) * per_token
    layerwise = actor.zero.stage == 3 and rollout.gather == "layers" and rollout.tensor_parallel == 1
    packs = not layerwise and packs_weights(rollout, device, dtype == "fp32", actor.model.num_parameters, rows)
    has_graphs = device == "cuda" and rollout.graphs and rollout.engine == "hybrid"
    return {
        "activations": count_prefilled(rollout, rows, prompt, layerwise) * forward_bytes_per_token(actor.model, dtype),
        "logits": rows * actor.model.vocab_size * (size + 4 * SAMPLING_COPIES),
        "cache": cache,
        "graphs": float(GRAPHS) if has_graphs else 0.0,
        "gather": rollout_gather_bytes(config, actor),
        "packed": float(packs * weight_bytes(actor.model, dtype)),
    }, cache


def evaluation_bytes(config: Config, policy: Role, state: Bytes, rows: int) -> Bytes:
    """Return what the evaluation of a policy that does not learn from samples takes: it samples and reads so many responses
    at a time, with a copy of the policy that training started from, unless that is the policy without its adapters."""
    start = 0.0 if is_reference_shared(config) else state_bytes(Role(config.model, policy.zero, None), config)["weights"]
    sampling, _ = sampling_bytes(config, policy, rows)
    prompt, new, dtype = config.data.max_prompt_tokens, config.rollout.max_new_tokens, config.precision.dtype
    read = {
        "activations": rows * (prompt + new) * forward_bytes_per_token(policy.model, dtype),
        "logits": logits_bytes(policy.model, dtype, rows * new) / 2,
    }
    larger = {name: max(sampling[name], value) for name, value in read.items()}
    return {**state, "gradients": 0.0, "weights": state["weights"] + start, **sampling, **larger}


def start_bytes(config: Config) -> float:
    """Return what an evaluation holds of the policy that training started from, where no reference is in memory that it
    could measure the KL to."""
    loaded = config.ppo.reference_refresh is not None or not has_reference(config)
    if not loaded or is_reference_shared(config):
        return 0.0
    return state_bytes(Role(config.model, config.reference_zero, None), config)["weights"]


def rollout_gather_bytes(config: Config, actor: Role) -> float:
    """Return what a rollout gathers of an actor that ZeRO stage 3 shards: all of it, its share of it, or two layers at a
    time."""
    if actor.zero.stage != 3:
        return 0.0
    whole = weight_bytes(actor.model, config.precision.dtype)
    if config.rollout.tensor_parallel > 1:
        return whole / int(config.rollout.tensor_parallel)
    return 2 * whole / max(1, actor.model.num_hidden_layers) if config.rollout.gather == "layers" else whole


def add_bytes(parts: Iterable[Bytes]) -> Bytes:
    """Sum bytes by component."""
    total: Bytes = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def peak_bytes(phases: dict[str, Bytes]) -> float:
    """Return the largest sum over a phase's components."""
    return max(sum(parts.values()) for parts in phases.values())
