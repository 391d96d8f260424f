"""Rollouts on the weights that are trained, by a decode loop of our own (rlhf/rollout/decoder.py)."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer
from rlhf.rollout.base import Part, Responses, generate_in_parts
from rlhf.rollout.decoder import Decoder, next_size
from rlhf.rollout.weights import synced_weights

# The caches and graphs of each model's last rollout, for its next one.
DECODERS: WeakKeyDictionary[Any, Decoder] = WeakKeyDictionary()


@torch.no_grad()
def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts, part by part."""
    owners = torch.arange(len(prompts.samples), device=prompts.ids.device) // prompts.copies
    with synced_weights(engine, rollout) as together:

        def sample(rows: Tensor, draws: Tensor) -> Part:
            batch = prompts.rows(rows)
            return decoder_for(engine.module, batch, tokenizer, rollout, together).run(batch, owners[rows], draws)

        responses = generate_in_parts(prompts, uniforms, rollout, sample)
    if rollout.release_cache:
        DECODERS.pop(engine.module, None)
    return responses


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
