"""Scores of responses by a reward model that may have another tokenizer than the actor."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.data.tokens import Encoded, Tokenizer, last_tokens, right_mask, sequence_batch, text_ids
from rlhf.models.families import last_position
from rlhf.models.forward import response_scores


@dataclass(frozen=True)
class ModelReward:
    """Scores responses by a reward model. `tokenizer` is its own where it has another than the actor, else None; `packing`
    is how sequences are laid out for a forward pass (`ppo.packing`)."""

    model: Any
    tokenizer: Tokenizer | None
    actor_tokenizer: Tokenizer
    packing: str
    device: torch.device

    def __call__(self, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
        """Return the score of each sequence, [B] in float32.

        `ids` and `mask` [B, T] are the actor's, their last `responses` columns the responses; `ended` [B] tells which of
        them reached end-of-text. A reward model with a tokenizer of its own reads the decoded text, encoded as it was
        trained on it: the prompt, then the response after a space, then end-of-text if the actor ended.
        """
        if self.tokenizer is None:
            return response_scores(self.model, ids, mask, self.packing)
        split = ids.size(1) - responses
        items = [
            self.encode(row[:split][kept[:split].bool()], row[split:][kept[split:].bool()], bool(done), self.tokenizer)
            for row, kept, done in zip(ids, mask, ended, strict=True)
        ]
        batch = sequence_batch(items, self.tokenizer.pad_token_id, self.device)
        return response_scores(self.model, batch.ids, right_mask(batch.lengths, batch.ids.size(1)), self.packing)

    def encode(self, prompt: Tensor, response: Tensor, ended: bool, own: Tokenizer) -> Encoded:
        """Encode a prompt and a response of the actor's tokens by the reward model's tokenizer; where its positions do not
        suffice, they lose their beginning, the prompt first."""
        prompt_text, text = (self.actor_tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, response))
        answer = list(own(" " + text.strip(), add_special_tokens=False)["input_ids"]) + [own.eos_token_id] * ended
        question = text_ids(prompt_text, own)
        limit = last_position(self.model.module.config)
        room = limit - len(answer)
        if room < len(question):
            question = last_tokens(question, max(0, room), own)
        return Encoded(question, answer[-limit:])
