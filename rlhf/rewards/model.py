"""Scores of responses by a reward model that may have another tokenizer than the actor."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.data.encoded import Encoded
from rlhf.data.templates import ShortPrompt, Template
from rlhf.data.tokens import right_mask, sequence_batch
from rlhf.models.families import last_position
from rlhf.models.forward import response_scores


@dataclass(frozen=True)
class ModelReward:
    """Scores responses by a reward model. `template` is its own where it has another tokenizer than the actor, else None;
    `packing` is how sequences are laid out for a forward pass (`ppo.packing`)."""

    model: Any
    template: Template | None
    actor_template: Template
    packing: str
    device: torch.device

    def __call__(self, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
        """Return the score of each sequence, [B] in float32.

        `ids` and `mask` [B, T] are the actor's, their last `responses` columns the responses; `ended` [B] tells which of
        them reached end-of-text. A reward model with a tokenizer of its own reads the decoded text, encoded as it was
        trained on it by its own template, with its own end of a turn if the actor ended.
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
        """Encode a prompt and a response of the actor's tokens by the reward model's tokenizer; where its positions do not
        suffice, they lose their beginning, the prompt first."""
        question = own.encoder.read_text(self.actor_template.tokenizer.decode(prompt, skip_special_tokens=True))
        short = ShortPrompt("", question.ids, None, question.context)
        answer = own.whole_answer(short, self.actor_template.decode(response.tolist()), ended)
        limit = last_position(self.model.module.config)
        room = limit - len(answer)
        if room < len(question.ids):
            return Encoded(own.encoder.last_tokens(question.ids, max(0, room)), answer[-limit:])
        return Encoded(question.ids, answer[-limit:])
