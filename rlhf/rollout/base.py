"""What generation engines take and return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer, right_mask


@dataclass(frozen=True)
class Responses:
    """Sampled responses: `tokens` [B, R] right-padded with a valid id, `lengths` [B] with end-of-text included, `ended`
    [B] whether end-of-text or a stop text was reached, and the sampler's own log-probabilities [B, R] (float32, nats, with
    the sampling temperature, before penalties, top-k and top-p, 0 on padding)."""

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    logprobs: Tensor


Generate = Callable[[Any, PromptBatch, np.ndarray, Tokenizer, Rollout], Responses]

# Of some rows: tokens and log-probabilities [B, R] (what follows an end is not to be used), lengths [B], whether ended [B].
Part = tuple[Tensor, Tensor, Tensor, Tensor]


def generate_in_parts(
    prompts: PromptBatch, uniforms: np.ndarray, rollout: Rollout, sample: Callable[[Tensor, Tensor], Part]
) -> Responses:
    """The responses that `sample` gives to rows, by their numbers and draws [B, R]: the longest prompts first,
    `rollout.micro_batch_size` at a time."""
    count, width, device = len(prompts.samples), rollout.max_new_tokens, prompts.ids.device
    draws = torch.from_numpy(uniforms).to(device)
    tokens, logprobs = prompts.ids.new_zeros(count, width), torch.zeros(count, width, device=device)
    lengths, ended = prompts.ids.new_zeros(count), torch.zeros(count, dtype=torch.bool, device=device)
    order = torch.argsort(prompts.lengths, descending=True, stable=True)
    for rows in order.split(rollout.micro_batch_size or count):
        tokens[rows], logprobs[rows], lengths[rows], ended[rows] = sample(rows, draws[rows])
    longest = int(lengths.max())
    mask = right_mask(lengths, longest)
    return Responses(tokens[:, :longest] * mask, lengths, ended, logprobs[:, :longest] * mask)
