"""Sampling by transformers' generate: slow, and right for every family."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch, left_mask
from rlhf.models.lora import base_model
from rlhf.rollout.base import Responses, evaluation_mode
from rlhf.rollout.sampling import StopTexts, end_tokens, have_ended, next_tokens, seen_tokens


class HFSampler:
    """Samples by transformers' generate on the training weights, `rollout.micro_batch_size` prompts at a time."""

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> None:
        self.engine, self.tokenizer, self.rollout = engine, tokenizer, rollout

    @staticmethod
    def problem(config: Config) -> ConfigError | None:
        """Return None: transformers' generate serves every configuration."""
        return None

    def sync(self) -> None:
        """Do nothing: a forward pass reads the training weights."""

    def release(self) -> None:
        """Do nothing: nothing is kept."""

    def generate(self, prompts: PromptBatch, draws: Tensor) -> Responses:
        """Answer prompts by the draws [B, max_new_tokens]."""
        rows = torch.arange(len(prompts.samples), device=prompts.ids.device)
        with evaluation_mode(self.engine):
            parts = [
                self.generate_part(prompts.rows(part), draws[part])
                for part in rows.split(self.rollout.micro_batch_size or len(rows))
            ]
        width = max(part.tokens.size(1) for part in parts)
        return Responses(
            tokens=torch.cat([F.pad(part.tokens, (0, width - part.tokens.size(1))) for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            ended=torch.cat([part.ended for part in parts]),
            logprobs=torch.cat([F.pad(part.logprobs, (0, width - part.logprobs.size(1))) for part in parts]),
        )

    def generate_part(self, prompts: PromptBatch, draws: Tensor) -> Responses:
        """Answer some of the prompts. At ZeRO stage 3 every rank goes on until all have finished, since each forward pass
        gathers weights from all ranks."""
        engine = self.engine
        mask = left_mask(prompts.lengths, prompts.ids.size(1))  # [B, Q]
        chooser = PresampledLogitsProcessor(prompts, mask, draws, self.tokenizer, self.rollout)
        model = base_model(engine.module)
        # The checkpoint's own generation config may hold penalties or beams.
        own, model.generation_config = model.generation_config, GenerationConfig()
        engine.module.generate(
            input_ids=prompts.ids.masked_fill(mask == 0, 0), attention_mask=mask,
            logits_processor=LogitsProcessorList([chooser]), stopping_criteria=StoppingCriteriaList([HasEnded(chooser)]),
            generation_config=GenerationConfig(
                max_new_tokens=self.rollout.max_new_tokens, do_sample=False, eos_token_id=int(chooser.ends[0]),
                pad_token_id=0, use_cache=True,
            ),
            synced_gpus=engine.zero_optimization_stage() == 3 and engine.world_size > 1,
        )  # fmt: skip
        model.generation_config = own
        width = int(chooser.lengths.max())
        return Responses(chooser.tokens[:, :width], chooser.lengths, ~chooser.unfinished, chooser.logprobs[:, :width])


class PresampledLogitsProcessor(LogitsProcessor):
    """Samples each row's next token from its own uniform number and masks all others, so that greedy `generate` must take
    it; tracks unfinished rows."""

    def __init__(self, prompts: PromptBatch, mask: Tensor, draws: Tensor, tokenizer: Tokenizer, rollout: Rollout) -> None:
        self.draws, self.rollout, self.limits = draws, rollout, prompts.limits
        self.ends = end_tokens(tokenizer, draws.device)
        self.prompts, self.mask = prompts, mask
        self.seen: Tensor | None = None
        self.stops = StopTexts(rollout.stop, tokenizer, draws.device) if rollout.stop else None
        self.unfinished = torch.ones(len(draws), dtype=torch.bool, device=draws.device)
        self.tokens, self.logprobs = torch.zeros_like(draws, dtype=torch.long), torch.zeros_like(draws)
        self.lengths = torch.zeros_like(self.unfinished, dtype=torch.long)
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step, rollout = self.step, self.rollout
        forbid = rollout.fixed_length or step < rollout.min_new_tokens
        if rollout.repetition_penalty != 1.0 and self.seen is None:
            self.seen = seen_tokens(self.prompts.ids, self.mask, scores.size(-1))
        forced = None if self.limits is None else torch.where(self.limits == step + 1, self.ends[0], -1)
        tokens, logprobs = next_tokens(
            scores, self.draws[:, step], rollout, self.ends if forbid else None, self.seen, forced=forced
        )
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        self.tokens[:, step], self.logprobs[:, step] = tokens * self.unfinished, logprobs * self.unfinished
        self.lengths += self.unfinished
        ended = have_ended(tokens, self.ends)
        if self.stops is not None and not forbid:
            ended |= self.stops(self.tokens, torch.tensor([step], device=tokens.device))
        self.unfinished &= ~ended
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


class HasEnded(StoppingCriteria):
    """Tells generate which rows have ended, [B]."""

    def __init__(self, chooser: PresampledLogitsProcessor) -> None:
        self.chooser = chooser

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Any:
        return ~self.chooser.unfinished
