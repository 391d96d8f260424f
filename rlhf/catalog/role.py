"""A model that a stage holds: memory, micro-batches, shards and time follow from it."""

from dataclasses import dataclass, field

from rlhf.config.schema import Lora, Model, Zero


@dataclass(frozen=True)
class Role:
    """A model that a stage holds.

    Attributes:
        model: Its shape.
        zero: How it is sharded: one of the configuration's own ZeRO groups.
        lora: How it is trained; None if it only reads.
        average: Whether a moving average of it is kept.
        recomputed: Whether its activations are recomputed in the backward pass (gradient checkpointing).
    """

    model: Model
    zero: Zero
    lora: Lora | None
    average: bool = False
    recomputed: bool = field(default=False, compare=False)
