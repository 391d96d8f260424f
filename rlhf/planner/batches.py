"""How a global batch is shared: by ranks, and on each of them by micro-batches that fit its memory."""

from rlhf.catalog.stage import kind_of
from rlhf.config.derive import Batches, divisors, ranks, share_batch
from rlhf.config.keys import get_key
from rlhf.config.schema import Config
from rlhf.planner.memory import GIB, Batch, peak_bytes, phase_bytes, record_tokens

# Held-out prompts that are answered at a time, at most: more would be no faster.
MOST_ANSWERED = 256


def batches(config: Config, stage: str) -> Batches:
    """Return the shares of the `batch_size` of the stage's section; raises ConfigError where they do not come out even."""
    per_rank, micro = share_batch(config, stage)
    if micro is None:
        micro = largest_micro_batch(config, stage, per_rank)
    return Batches(ranks(config), per_rank, micro, per_rank // micro)


def rollout_rows(config: Config, stage: str) -> int:
    """Return the responses that a rank samples at a time in a stage, or that the ranks do which share each layer; 0 where
    it samples none."""
    kind = kind_of(stage)
    if not (kind.samples_responses or kind.only_samples):
        return 0
    own = max(1, get_key(config, f"{kind.section}.{kind.batch_key}") // ranks(config))
    given = config.rollout.micro_batch_size
    return own * config.rollout.tensor_parallel if given is None else int(given)


def answered_together(config: Config, stage: str) -> int:
    """Return the prompts that a rank answers at a time where a stage samples to evaluate alone: `rollout.micro_batch_size`,
    or as many as fit a device by the plan."""
    if isinstance(config.rollout.micro_batch_size, int):
        return config.rollout.micro_batch_size
    rows, room = 1, config.hardware.memory_gib * GIB
    while rows < MOST_ANSWERED and sum(phase_bytes(config, stage, Batch(1, 2 * rows))["sample"].values()) <= room:
        rows *= 2
    return rows


def largest_micro_batch(config: Config, stage: str, per_rank: int) -> int:
    """Return the largest divisor of a rank's batch with which the stage fits a device by the plan; 1 if none does."""
    fitting = (size for size in reversed(divisors(per_rank)) if fits_device(config, stage, size))
    return next(fitting, 1)


def answers_per_pass(config: Config, stage: str) -> int:
    """Return the most answers that a forward pass of a stage reads that trains on comparisons.

    These are two for each comparison of its `micro_batch_size`, or, where that is null, as many as fit beside its weights
    and optimiser state. One prompt's answers beyond that, if all its pairs are read together, take several passes.
    """
    kind = kind_of(stage)
    given: int | None = get_key(config, f"{kind.section}.micro_batch_size")
    if given is not None:
        return kind.sequences(config) * given
    size = 1
    while size < 2**20 and fits_device(config, stage, 2 * size):
        size *= 2
    return kind.sequences(config) * size


def fits_device(config: Config, stage: str, micro: int) -> bool:
    """Whether training on so many records at a time fits a device by the plan."""
    batch = Batch(micro, rollout_rows(config, stage))
    phases = phase_bytes(config, stage, batch)
    trained = {name: parts for name, parts in phases.items() if name in ("train", "score", "update")}
    return peak_bytes(trained) <= config.hardware.memory_gib * GIB


def texts_read_together(config: Config, stage: str) -> int:
    """Return the texts that a device reads at a time in a stage that trains nothing: answers that it samples, or as many
    records of the longest length as a pass holds."""
    if kind_of(stage).samples:
        return config.evaluate.batch_size
    return max(1, config.evaluate_reward.tokens_per_pass // record_tokens(config))
