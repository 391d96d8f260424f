"""Rollouts by transformers' generate: slow, and right for every family."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer, left_mask
from rlhf.models.lora import base_model
from rlhf.rollout.base import Responses
from rlhf.rollout.sampling import StopTexts, next_tokens, seen_tokens


class PresampledLogitsProcessor(LogitsProcessor):
    """Chooses each row's token itself, leaves generate, which decodes greedily, no other, and knows which rows go on."""

    def __init__(self, prompts: PromptBatch, mask: Tensor, draws: Tensor, tokenizer: Tokenizer, rollout: Rollout) -> None:
        self.draws, self.rollout, self.eos, self.limits = draws, rollout, int(tokenizer.eos_token_id), prompts.limits
        self.prompts, self.mask = prompts, mask
        self.seen: Tensor | None = None
        self.stops = StopTexts(rollout.stop, tokenizer, draws.device) if rollout.stop else None
        self.alive = torch.ones(len(draws), dtype=torch.bool, device=draws.device)
        self.tokens, self.logprobs = torch.zeros_like(draws, dtype=torch.long), torch.zeros_like(draws)
        self.lengths = torch.zeros_like(self.alive, dtype=torch.long)
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step, rollout = self.step, self.rollout
        forbid = rollout.fixed_length or step < rollout.min_new_tokens
        if rollout.repetition_penalty != 1.0 and self.seen is None:
            self.seen = seen_tokens(self.prompts.ids, self.mask, scores.size(-1))
        forced = None if self.limits is None else torch.where(self.limits == step + 1, self.eos, -1)
        tokens, logprobs = next_tokens(
            scores, self.draws[:, step], rollout, self.eos if forbid else None, self.seen, forced=forced
        )
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        self.tokens[:, step], self.logprobs[:, step] = tokens * self.alive, logprobs * self.alive
        self.lengths += self.alive
        ended = tokens == self.eos
        if self.stops is not None and not forbid:
            ended |= self.stops(self.tokens, torch.tensor([step], device=tokens.device))
        self.alive &= ~ended
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


class EndedCriteria(StoppingCriteria):
    """Which rows have ended, as their Chooser knows."""

    def __init__(self, chooser: PresampledLogitsProcessor) -> None:
        self.chooser = chooser

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Any:
        return ~self.chooser.alive


@torch.no_grad()
def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts, `rollout.micro_batch_size` at a time."""
    rows = torch.arange(len(prompts.samples), device=prompts.ids.device)
    draws = torch.from_numpy(uniforms).to(prompts.ids.device)
    parts = [
        generate_part(engine, prompts.rows(part), draws[part], tokenizer, rollout)
        for part in rows.split(rollout.micro_batch_size or len(rows))
    ]
    width = max(part.tokens.size(1) for part in parts)
    return Responses(
        tokens=torch.cat([F.pad(part.tokens, (0, width - part.tokens.size(1))) for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        ended=torch.cat([part.ended for part in parts]),
        logprobs=torch.cat([F.pad(part.logprobs, (0, width - part.logprobs.size(1))) for part in parts]),
    )


def generate_part(engine: Any, prompts: PromptBatch, draws: Tensor, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """`generate` for some of the prompts. Under ZeRO stage 3 every rank goes on until all are done, since each forward
    pass gathers weights from all of them."""
    mask = left_mask(prompts.lengths, prompts.ids.size(1))
    chooser = PresampledLogitsProcessor(prompts, mask, draws, tokenizer, rollout)
    model = base_model(engine.module)
    # What the checkpoint's own generation config says (penalties, beams) is not asked for.
    own, model.generation_config = model.generation_config, GenerationConfig()
    engine.module.generate(
        input_ids=prompts.ids.masked_fill(mask == 0, 0), attention_mask=mask,
        logits_processor=LogitsProcessorList([chooser]), stopping_criteria=StoppingCriteriaList([EndedCriteria(chooser)]),
        generation_config=GenerationConfig(
            max_new_tokens=rollout.max_new_tokens, do_sample=False, eos_token_id=chooser.eos, pad_token_id=0, use_cache=True
        ),
        synced_gpus=engine.zero_optimization_stage() == 3 and engine.world_size > 1,
    )  # fmt: skip
    model.generation_config = own
    width = int(chooser.lengths.max())
    return Responses(chooser.tokens[:, :width], chooser.lengths, ~chooser.alive, chooser.logprobs[:, :width])
