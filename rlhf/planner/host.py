"""How much of its node's main memory a rank takes, by formula. Pure: no torch, no GPU, no weights.

What DeepSpeed keeps on the host was read from its 0.19 (runtime/zero/stage_1_and_2.py and stage3.py).
"""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from packaging.version import parse

from rlhf.catalog.role import Role
from rlhf.catalog.stage import kind_of
from rlhf.config.derive import measured_stage, ranks, samples_responses_in
from rlhf.config.schema import Config
from rlhf.planner.memory import (
    PROCESS_OF_GPU,
    bytes_per_element,
    count_held,
    count_trained,
    optimizer_bytes_per_parameter,
    state_bytes,
)

# The first torch that can be told to take as much pinned memory as a large tensor has (runtime/compat/torch.py tells it).
EXACT_SINCE = parse("2.13")


@cache
def rounds_pinned() -> bool:
    """Whether the torch that is installed takes a power of two of bytes for each tensor in pinned memory."""
    try:
        return parse(version("torch")).release < EXACT_SINCE.release
    except PackageNotFoundError:
        return False


def pinned_bytes(whole: float, piece: float | None = None) -> float:
    """Return what tensors of so many bytes together take in pinned memory: one tensor, or several of `piece` bytes and a
    last one of what is left."""
    if not rounds_pinned():
        return whole
    count, rest = (0, whole) if piece is None else divmod(whole, piece)
    return count * round_to_power(piece or 0.0) + round_to_power(rest)


def round_to_power(size: float) -> float:
    """Return the least power of two that is not below a size; 0 of 0."""
    return float(1 << (int(size) - 1).bit_length()) if size >= 1 else 0.0


def host_bytes(config: Config, stage: str) -> float:
    """Return what a rank holds of its node's main memory: its process, and what is offloaded; on the CPU nothing beside its
    device's memory."""
    if config.hardware.device == "cpu":
        return 0.0
    each = float(PROCESS_OF_GPU)
    for role in kind_of(measured_stage(config, stage)).roles(config):
        each += offloaded_bytes(role, config)
    if samples_responses_in(stage) and config.ppo.offload_idle:  # copies in pieces of powers of two
        roles = kind_of(stage).roles(config)
        each += sum(sum(state_bytes(role, config).values()) for role in roles[1:])
    return each


def offloaded_bytes(role: Role, config: Config) -> float:
    """Return what DeepSpeed keeps of a role on the host for a rank.

    An optimiser that is offloaded keeps there master weights, moments and gradients in float32, and a buffer in the
    model's format: of weights on their way to the device, or at stage 3 of gradients on their way from it. Gradients, the
    buffer, and below stage 3 master weights are pinned; stage 3 cuts what it keeps into groups of `sub_group_size`.
    """
    zero, size = role.zero, bytes_per_element(config.precision.dtype)
    shares = ranks(config) if zero.stage >= 1 else 1
    trained, held = count_trained(role) / shares, count_held(role) / shares
    group = zero.reduce_bucket_size  # which runtime/ds_config.py gives as sub_group_size
    total = 0.0
    if zero.offload_optimizer:
        states = optimizer_bytes_per_parameter(config, zero) * trained + pinned_bytes(size * trained)
        if zero.stage == 3:
            total += states + pinned_bytes(4 * trained, 4 * group)
        else:
            total += states - 4 * trained + 2 * pinned_bytes(4 * trained)
    if zero.offload_param:
        total += pinned_bytes(size * held, size * group)
    return total
