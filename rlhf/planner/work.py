"""How much work a stage is: its steps, and an upper bound of its operations, before anything is loaded."""

from rlhf.catalog.stage import StageKind, Work, kind_of
from rlhf.config.derive import count_batches
from rlhf.config.schema import Config, Training


def estimate_work(config: Config, stage: str, records: int | None, answers: int = 2) -> Work | None:
    """Return the work of a stage on so many records; None if that cannot be told (no records known, no limit of steps). A
    record of the reward model has so many answers: it is a pair, or all pairs of a prompt."""
    kind = kind_of(stage)
    if kind.work is not None:
        return kind.work(config)
    steps = count_steps(config, kind, records)
    return None if steps is None else Work(steps, steps * kind.step_flops(config, answers), answers)


def count_steps(config: Config, kind: StageKind, records: int | None) -> int | None:
    """Return the steps of a stage on so many records; None if that cannot be told."""
    if kind.section is None:
        return None
    training: Training = getattr(config, kind.section)
    size = max(1, getattr(training, kind.batch_key) // kind.copies(config))
    if kind.only_samples:
        return None if records is None else -(-records // size)
    return training.max_steps if records is None else count_batches(training.epochs, records // size, training.max_steps)
