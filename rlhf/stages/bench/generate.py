"""Rollouts by transformers' generate and nothing of ours, but that a response is as long as the benchmark says."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rlhf.config.schema import Config
from rlhf.data.tokens import PromptBatch, left_mask, right_mask
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.rollout.base import evaluation_mode


@dataclass(frozen=True)
class Rollout:
    """Left-padded prompts [B, Q], right-padded responses [B, R], and the masks of both."""

    asked: Tensor
    asked_mask: Tensor
    said: Tensor
    said_mask: Tensor

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Return prompts and responses in one row each, and their mask, both [B, Q + R]."""
        return torch.cat([self.asked, self.said], 1), torch.cat([self.asked_mask, self.said_mask], 1)


def generate(engine: DeepSpeedRLHFEngine, config: Config, prompts: PromptBatch, do_sample: bool) -> Rollout:
    """Answer all prompts together, padded to `data.max_prompt_tokens`; sample, or take the likeliest token."""
    most, end, rollout = config.data.max_prompt_tokens, int(engine.tokenizer.eos_token_id), config.rollout
    asked, mask = F.pad(prompts.ids, (most - prompts.ids.size(1), 0)), left_mask(prompts.lengths, most)
    lengths = last_tokens(prompts, config)
    how = {"top_k": 0, "temperature": rollout.temperature} if do_sample else {}
    settings = GenerationConfig(
        max_new_tokens=rollout.max_new_tokens, do_sample=do_sample, eos_token_id=end, pad_token_id=0, **how
    )
    ends = LogitsProcessorList([EndBySchedule(end, most, lengths)])
    with evaluation_mode(engine.actor):
        said: Tensor = engine.actor.module.generate(
            input_ids=asked, attention_mask=mask, generation_config=settings, logits_processor=ends
        )[:, most:]
    return Rollout(asked, mask, said, right_mask(lengths.clamp(max=said.size(1)), said.size(1)))


def last_tokens(prompts: PromptBatch, config: Config) -> Tensor:
    """Return how many tokens each response is to have, [B]; one more than there may be of one that never ends."""
    if prompts.limits is not None:
        return prompts.limits
    return torch.full_like(prompts.lengths, config.rollout.max_new_tokens + 1)


class EndBySchedule(LogitsProcessor):
    """Lets each row of a rollout end with so many tokens, and not before."""

    def __init__(self, end: int, prompt: int, lengths: Tensor) -> None:
        self.end, self.prompt, self.lengths = end, prompt, lengths

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits [B, V] that allow nothing but the end where a row is to end now, and all but it elsewhere."""
        ends = self.lengths == input_ids.size(1) - self.prompt + 1
        scores[ends] = -torch.inf
        scores[:, self.end] = torch.where(ends, 0.0, -torch.inf)
        return scores
