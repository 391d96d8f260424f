"""Scores of responses by a reward model that may have another tokenizer than the actor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.data.dataset import Prompt
from rlhf.data.encoded import Encoded
from rlhf.data.templates import ShortPrompt, Template
from rlhf.data.tokens import right_mask, sequence_batch
from rlhf.models.families import last_position
from rlhf.models.forward import response_scores


@dataclass(frozen=True)
class ModelReward:
    """Scores responses by a reward model.

    Attributes:
        model: The reward model.
        template: Its own template where it has another tokenizer or another template than the actor, else None.
        actor_template: The actor's.
        packing: How sequences are laid out for a forward pass (`ppo.packing`).
        device: Where it is.
        prompts: The prompts of records by their ids, as far as they are known.
    """

    model: Any
    template: Template | None
    actor_template: Template
    packing: str
    device: torch.device
    prompts: Mapping[tuple[int, ...], Prompt] = field(default_factory=dict)

    def __call__(self, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
        """Return the score of each sequence, [B] in float32.

        `ids` and `mask` [B, T] are the actor's, their last `responses` columns the responses; `ended` [B] tells which of
        them reached their end. A reward model with a tokenizer or template of its own reads the text, encoded as it was
        trained on it, with its own end of a turn if the actor ended.
        """
        if self.template is None:
            return response_scores(self.model, ids, mask, self.packing)
        split = ids.size(1) - responses
        items = [
            self.encode(row[:split][kept[:split].bool()], row[split:][kept[split:].bool()], bool(done), self.template)
            for row, kept, done in zip(ids, mask, ended, strict=True)
        ]
        batch = sequence_batch(items, self.template.tokenizer.pad_token_id, self.device)
        return response_scores(self.model, batch.ids, right_mask(batch.lengths, batch.ids.size(1)), self.packing)

    def encode(self, prompt: Tensor, response: Tensor, ended: bool, own: Template) -> Encoded:
        """Encode a prompt and a response of the actor's tokens by the reward model's tokenizer and template; where its
        positions do not suffice, they lose their beginning, the prompt first."""
        short = self.read_prompt(prompt, own)
        answer = own.whole_answer(short, self.actor_template.decode(response.tolist()), ended)
        limit = last_position(self.model.module.config)
        room = limit - len(answer)
        if room < len(short.ids):
            return Encoded(own.encoder.last_tokens(short.ids, max(0, room)), answer[-limit:])
        return Encoded(short.ids, answer[-limit:])

    def read_prompt(self, prompt: Tensor, own: Template) -> ShortPrompt:
        """Return a prompt as the reward model reads it: the record's, as in its training, or, where no record is known, the
        text that the actor read."""
        known = self.prompts.get(tuple(prompt.tolist()))
        if known is None:
            return own.read_text(self.actor_template.tokenizer.decode(prompt, skip_special_tokens=True))
        return own.shorten(known) or own.read(known)
