"""How a global batch is shared: by ranks, and on each of them by micro-batches that fit its memory."""

from rlhf.config.derive import Batches, divisors, ranks, samples_responses_in, share_batch
from rlhf.config.schema import Config
from rlhf.planner.memory import GIB, Batch, peak_bytes, phase_bytes


def batches(config: Config, stage: str) -> Batches:
    """Return the shares of the `batch_size` of the stage's section; raises ConfigError where they do not come out even."""
    per_rank, micro = share_batch(config, stage)
    if micro is None:
        micro = largest_micro_batch(config, stage, per_rank)
    return Batches(ranks(config), per_rank, micro, per_rank // micro)


def rollout_rows(config: Config) -> int:
    """Return the responses that a rank samples at a time, or that the ranks do which share each layer."""
    own = max(1, config.ppo.rollout_batch_size // ranks(config))
    given = config.rollout.micro_batch_size
    return own * config.rollout.tensor_parallel if given is None else int(given)


def largest_micro_batch(config: Config, stage: str, per_rank: int) -> int:
    """Return the largest divisor of a rank's batch with which the stage fits a device by the plan; 1 if none does."""
    fitting = (size for size in reversed(divisors(per_rank)) if fits_device(config, stage, size))
    return next(fitting, 1)


def fits_device(config: Config, stage: str, micro: int) -> bool:
    """Whether training on so many records at a time fits a device by the plan."""
    batch = Batch(micro, rollout_rows(config) if samples_responses_in(stage) else 0)
    phases = phase_bytes(config, stage, batch)
    trained = {name: parts for name, parts in phases.items() if name in ("train", "score", "update")}
    return peak_bytes(trained) <= config.hardware.memory_gib * GIB
