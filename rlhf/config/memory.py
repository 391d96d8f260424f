"""How much memory training takes, by formula. Pure: no torch, no GPU, no weights."""

import math
from dataclasses import dataclass, field

from rlhf.config.schema import Config, Lora, Model, Zero

GIB = 2**30


@dataclass(frozen=True)
class Role:
    """A model that a stage holds: how it is sharded, how it is trained (None: not at all), whether a moving average of it
    is kept, and whether its activations are recomputed (gradient checkpointing)."""

    model: Model
    zero: Zero
    lora: Lora | None
    average: bool = False
    recomputed: bool = field(default=False, compare=False)


def bytes_per_element(dtype: str) -> int:
    """Size of one weight or activation."""
    return 4 if dtype == "fp32" else 2


def adapter_parameters(model: Model, rank: int) -> int:
    """Weights of adapters of this rank on every matrix of the blocks: rank * (inputs + outputs) each."""
    width, heads = model.hidden_size, model.num_attention_heads + model.num_key_value_heads
    attention = 4 * width + 2 * heads * model.head_dim
    feed_forward = (3 if model.gated_mlp else 2) * (width + model.intermediate_size)
    return rank * model.num_hidden_layers * (attention + feed_forward)


def weights_gib(model: Model, dtype: str, shares: int) -> float:
    """A model's weights, divided into so many shares, in GiB."""
    return model.num_parameters * bytes_per_element(dtype) / shares / GIB


def cache_bytes_per_token(model: Model, dtype: str) -> int:
    """What one token takes in a key-value cache: a key and a value of every head of every layer."""
    return 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * bytes_per_element(dtype)


def state_gib(role: Role, config: Config) -> float:
    """Weights, gradients and optimiser state of a model on one device, in GiB.

    Mixed precision keeps 2 + 2 bytes of weight and gradient and 12 of fp32 master weight and Adam moments per trained
    parameter; fp32 keeps 4 + 4 + 8, and DeepSpeed's ZeRO a master weight there too. ZeRO divides by the ranks what its
    stage shards (arXiv 1910.02054, section 5); in mixed precision stage 0 is run as stage 1.
    """
    size = bytes_per_element(config.precision.dtype)
    ranks, zero = config.hardware.nodes * config.hardware.gpus_per_node, role.zero
    half = config.precision.dtype != "fp32"
    optimizer = 12 if half or zero.stage >= 1 else 8
    adapters = adapter_parameters(role.model, role.lora.rank) if role.lora else 0
    whole = role.model.num_parameters + adapters
    trained = 0 if role.lora is None else adapters if role.lora.rank > 0 and role.lora.only else whole
    weights = 0.0 if zero.offload_param else size / (ranks if zero.stage == 3 else 1)
    gradients = size / (ranks if zero.stage >= 2 else 1)
    moments = 0.0 if zero.offload_optimizer else optimizer / (ranks if half or zero.stage >= 1 else 1)
    average = 4 / (ranks if zero.stage == 3 else 1) if role.average else 0
    return (whole * weights + trained * (gradients + moments + average)) / GIB


def activation_bytes_per_token(model: Model, dtype: str, checkpointing: bool) -> float:
    """What a forward pass keeps for the backward pass, per token.

    34 bytes per element of width and layer at 2 bytes an activation (arXiv 2205.05198, eq. 1, without the attention
    matrix, which fused attention does not keep), or one element per layer when it is recomputed; and the logits in the
    model's format, once more in float32, and their gradient.
    """
    size = bytes_per_element(dtype)
    per_layer = size * model.hidden_size if checkpointing else 17 * size * model.hidden_size
    return model.num_hidden_layers * per_layer + (2 * size + 4) * model.vocab_size


def count_fitting_sequences(model: Model, config: Config, tokens: int, state_gib: float, checkpointing: bool) -> int:
    """How many sequences of `tokens` tokens have activations that fill at most 60 % of the memory that the state leaves.

    At least 1; if even that does not fit, the run fails with out-of-memory.
    """
    room = 0.6 * max(0.0, config.hardware.memory_gib - state_gib) * GIB
    return max(1, int(room / (tokens * activation_bytes_per_token(model, config.precision.dtype, checkpointing))))


def largest_micro_batch(
    model: Model, config: Config, per_rank: int, tokens: int, state_gib: float, checkpointing: bool
) -> int:
    """The largest divisor of `per_rank` that `sequences_that_fit` allows; `tokens` is the length of one sequence."""
    fits = count_fitting_sequences(model, config, tokens, state_gib, checkpointing)
    return max(divisor for divisor in divisors(per_rank) if divisor <= fits)


def divisors(number: int) -> list[int]:
    """The divisors of a whole number above 0, in order."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})
