"""How much a stage writes to the disk, by formula, in bytes. No torch."""

from rlhf.catalog.stage import kind_of
from rlhf.config.schema import Config
from rlhf.planner.memory import bytes_per_element, count_trained, optimizer_bytes_per_parameter


def disk_bytes(config: Config, stage: str) -> float:
    """Return what a stage writes at most: the checkpoints that are kept, one that is being written, and its models."""
    return (config.checkpoint.keep + 1) * state_on_disk(config, stage) + saved_bytes(config, stage)


def state_on_disk(config: Config, stage: str) -> float:
    """Return a checkpoint: weights, master weights and moments of what is trained, of all ranks together."""
    size = bytes_per_element(config.precision.dtype)
    trained = [role for role in kind_of(stage).roles(config) if role.lora is not None]
    return sum(count_trained(role) * (size + optimizer_bytes_per_parameter(config, role.zero)) for role in trained)


def saved_bytes(config: Config, stage: str) -> float:
    """Return the models that a stage saves."""
    size = bytes_per_element(config.precision.dtype)
    trained = [role for role in kind_of(stage).roles(config) if role.lora is not None]
    return sum(size * role.parameters * (2 if role.average else 1) for role in trained)
