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
        scorer: Whether it gives a score instead of logits: a reward model or a critic.
    """

    model: Model
    zero: Zero
    lora: Lora | None
    average: bool = False
    recomputed: bool = field(default=False, compare=False)
    scorer: bool = field(default=False, compare=False)

    @property
    def parameters(self) -> int:
        """Parameters of the model, without adapters. A scorer has a number per token in place of the head, which is weights
        of its own where it is not the embedding."""
        head = 0 if self.model.tie_word_embeddings else self.model.vocab_size * self.model.hidden_size
        return self.model.num_parameters - head if self.scorer else self.model.num_parameters
