"""Rollouts on the weights that are trained, by a decode loop of our own (rlhf/rollout/decoder.py)."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer, right_mask
from rlhf.rollout.base import Responses
from rlhf.rollout.decoder import Decoder, next_size
from rlhf.rollout.weights import ready

# The caches and graphs of each model's last rollout, for its next one.
DECODERS: WeakKeyDictionary[Any, Decoder] = WeakKeyDictionary()


@torch.no_grad()
def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts, the longest first, `rollout.micro_batch_size` at a time."""
    count, width, device = len(prompts.samples), rollout.max_new_tokens, prompts.ids.device
    tokens, logprobs = prompts.ids.new_zeros(count, width), torch.zeros(count, width, device=device)
    lengths, ended = prompts.ids.new_zeros(count), torch.zeros(count, dtype=torch.bool, device=device)
    owners, draws = torch.arange(count, device=device) // prompts.copies, torch.from_numpy(uniforms).to(device)
    order = torch.argsort(prompts.lengths, descending=True, stable=True)
    with ready(engine, rollout) as together:
        for rows in order.split(rollout.micro_batch_size or count):
            batch = prompts.rows(rows)
            decoder = decoder_for(engine.module, batch, tokenizer, rollout, together)
            tokens[rows], logprobs[rows], lengths[rows], ended[rows] = decoder.run(batch, owners[rows], draws[rows])
        if rollout.release_cache:
            DECODERS.pop(engine.module, None)
    longest = int(lengths.max())
    mask = right_mask(lengths, longest)
    return Responses(tokens[:, :longest] * mask, lengths, ended, logprobs[:, :longest] * mask)


def decoder_for(model: Any, prompts: PromptBatch, tokenizer: Tokenizer, rollout: Rollout, together: bool) -> Decoder:
    """The decoder of the model's last rollout if it can do this one, or a new one in its place."""
    count, longest, device = len(prompts.samples), int(prompts.lengths.max()), prompts.ids.device
    known = DECODERS.pop(model, None)
    if known is None or not known.serves(count, longest, rollout, together):
        del known  # before another cache is made
        rows = next_size(count) if device.type == "cuda" else count
        known = Decoder(model, rows, longest, tokenizer, rollout, together, device)
    DECODERS[model] = known
    return known
