"""Rollouts by transformers' generate: slow, and right for every family."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer, left_mask, right_mask
from rlhf.models.lora import base_model
from rlhf.rollout.base import Responses
from rlhf.rollout.sampling import next_tokens


class Chooser(LogitsProcessor):
    """Chooses each row's token itself and leaves generate, which decodes greedily, no other."""

    def __init__(self, uniforms: Tensor, rollout: Rollout, eos: int, limits: Tensor | None) -> None:
        self.uniforms, self.rollout, self.eos, self.limits = uniforms, rollout, eos, limits
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.logprobs)
        fixed = self.rollout.fixed_length
        forbid = self.eos if fixed or step < self.rollout.min_new_tokens else None
        tokens, logprobs = next_tokens(scores, self.uniforms[:, step], self.rollout, forbid)
        if self.limits is not None:
            tokens = torch.where(self.limits == step + 1, self.eos, tokens)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


@torch.no_grad()
def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts, `rollout.micro_batch_size` at a time."""
    count = prompts.ids.size(0)
    size = rollout.micro_batch_size or count
    parts = [
        generate_part(engine, prompts, uniforms, tokenizer, rollout, slice(start, start + size))
        for start in range(0, count, size)
    ]
    width = max(part.tokens.size(1) for part in parts)
    return Responses(
        tokens=torch.cat([F.pad(part.tokens, (0, width - part.tokens.size(1))) for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        ended=torch.cat([part.ended for part in parts]),
        logprobs=torch.cat([F.pad(part.logprobs, (0, width - part.logprobs.size(1))) for part in parts]),
    )


def generate_part(
    engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout, rows: slice
) -> Responses:
    """`generate` for some of the prompts. Under ZeRO stage 3 every rank goes on until all are done, since each forward
    pass gathers weights from all of them."""
    ids, eos = prompts.ids[rows], int(tokenizer.eos_token_id)
    mask = left_mask(prompts.lengths[rows], ids.size(1))
    limits = None if prompts.limits is None else prompts.limits[rows]
    chooser = Chooser(torch.from_numpy(uniforms[rows]).to(ids.device), rollout, eos, limits)
    model = base_model(engine.module)
    # What the checkpoint's own generation config says (penalties, beams) is not asked for.
    own, model.generation_config = model.generation_config, GenerationConfig()
    output = engine.module.generate(
        input_ids=ids.masked_fill(mask == 0, 0), attention_mask=mask, logits_processor=LogitsProcessorList([chooser]),
        generation_config=GenerationConfig(
            max_new_tokens=rollout.max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0, use_cache=True
        ),
        synced_gpus=engine.zero_optimization_stage() == 3 and engine.world_size > 1,
    )  # fmt: skip
    model.generation_config = own
    tokens = output[:, ids.size(1) :]
    stops = tokens == eos
    ended = stops.any(dim=1)
    lengths = torch.where(ended, stops.long().argmax(dim=1) + 1, tokens.size(1))
    logprobs = torch.stack(chooser.logprobs[: tokens.size(1)], dim=1) * right_mask(lengths, tokens.size(1))
    return Responses(tokens, lengths, ended, logprobs)
