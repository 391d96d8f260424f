"""How much memory training takes, by formula. Pure: no torch, no GPU, no weights."""

from rlhf.config.schema import Config, Model

GIB = 2**30


def bytes_per_element(dtype: str) -> int:
    """Size of one weight or activation."""
    return 4 if dtype == "fp32" else 2


def training_state_gib(config: Config, trained: list[Model], frozen: list[Model]) -> float:
    """Weights, gradients and optimiser state on one device, in GiB.

    Mixed precision keeps 2 + 2 bytes of weight and gradient and 12 of fp32 master weight and Adam moments per
    parameter; fp32 keeps 4 + 4 + 8. ZeRO divides by the ranks what its stage shards (arXiv 1910.02054, section 5).
    """
    size = bytes_per_element(config.precision.dtype)
    optimizer = 8 if config.precision.dtype == "fp32" else 12
    ranks = config.hardware.nodes * config.hardware.gpus_per_node
    stage = config.zero.stage
    weight = size / (ranks if stage == 3 else 1)
    gradient = size / (ranks if stage >= 2 else 1)
    state = 0.0 if config.zero.offload_optimizer else optimizer / (ranks if stage >= 1 else 1)
    per_trained = weight + gradient + state
    total = sum(m.parameters for m in trained) * per_trained + sum(m.parameters for m in frozen) * weight
    return total / GIB


def activation_bytes_per_token(model: Model, dtype: str, checkpointing: bool) -> float:
    """What a forward pass keeps for the backward pass, per token.

    34 bytes per element of width and layer at 2 bytes an activation (arXiv 2205.05198, eq. 1, without the attention
    matrix, which fused attention does not keep), or one element per layer when it is recomputed; and the logits in the
    model's format, once more in float32, and their gradient.
    """
    size = bytes_per_element(dtype)
    per_layer = size * model.width if checkpointing else 17 * size * model.width
    return model.layers * per_layer + (2 * size + 4) * model.vocabulary


def largest_micro_batch(
    model: Model, config: Config, per_rank: int, tokens: int, state_gib: float, checkpointing: bool
) -> int:
    """The largest divisor of `per_rank` whose activations fill at most 60 % of the memory that the state leaves.

    `tokens` is the length of one sequence. Never below 1: whether that fits is for the run to tell.
    """
    room = 0.6 * max(0.0, config.hardware.memory_gib - state_gib) * GIB
    fits = int(room / (tokens * activation_bytes_per_token(model, config.precision.dtype, checkpointing)))
    return max([d for d in range(1, per_rank + 1) if per_rank % d == 0 and d <= fits], default=1)
