"""Held-out evaluation of step 3: the policy's answers, their scores, their gold rewards, and how far it has moved."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rlhf.algo.errors import mean_with_error
from rlhf.algo.kl import k1
from rlhf.algo.masked import masked_sum
from rlhf.catalog.stage import kind_of
from rlhf.config.derive import policy_stage
from rlhf.config.schema import Config
from rlhf.data.dataset import Prompt as DataPrompt
from rlhf.data.encoded import Tokenizer
from rlhf.data.loaders import from_shares, local_share
from rlhf.data.records import require_records
from rlhf.data.templates import build_template
from rlhf.data.tokenized import DataSource, Prompts, open_data
from rlhf.data.tokens import PromptRecord, left_mask, prompt_batch, right_mask
from rlhf.engine.compiled import run_uncompiled
from rlhf.models.forward import response_logprobs
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.rewards.texts import decode_responses, make_samples
from rlhf.runtime.distributed import rank, world
from rlhf.runtime.seeds import uniforms

# Answers that samples.jsonl keeps of an evaluation during training; of the last one it keeps all.
SAMPLES_KEPT = 16


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt: as its record has it, as text to show, and as ids, with whatever else its record says of it, as
    the reference answer."""

    prompt: DataPrompt
    text: str
    ids: list[int]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One response to a held-out prompt; `kl` is the summed k1 estimate against the reference, in nats."""

    prompt: str
    response: str
    score: float
    gold: float | None
    kl: float
    length: int


def heldout_prompts(source: DataSource, tokenizer: Tokenizer) -> list[Prompt]:
    """Return the held-out prompts that fit data.max_prompt_tokens. Raises ConfigError if there are none."""
    found: Prompts = open_data(source, tokenizer, "prompts", "heldout")
    require_records(found, "prompts", source.config)
    template, records = build_template(source.config.data, tokenizer), map(found.record, range(len(found)))
    return [Prompt(prompt, template.show(prompt), ids, meta) for ids, (prompt, meta) in zip(found, records, strict=True)]


class Evaluation:
    """Answers every held-out prompt once, with the sampling settings of the rollouts and the same random numbers each
    time, so that two policies differ by their weights alone."""

    def __init__(
        self,
        engine: DeepSpeedRLHFEngine,
        config: Config,
        gold: Callable[[DataPrompt, str], float] | None,
        prompts: list[Prompt],
    ) -> None:
        self.engine, self.config, self.gold, self.prompts = engine, config, gold, prompts
        self.has_begun = True  # whether the actor has learned from a rollout

    def answers_before(self, show: Callable[[int, int], None] | None = None) -> list[Answer]:
        """Return the answers of the policy that training starts from: of the reference, or, before the first update, of the
        actor where there is none."""
        if self.engine.ref is not None:
            return self.answers(self.engine.ref, show)
        self.has_begun = False
        found = self.answers(self.engine.actor, show)
        self.has_begun = True
        return found

    @torch.no_grad()
    def answers(self, policy: Any, show: Callable[[int, int], None] | None = None) -> list[Answer]:
        """Return the answers of a policy (an engine), in the prompts' order, on every rank; `show` is told how many of
        this rank's prompts are answered, and of how many."""
        count = len(self.prompts)
        # Equally many on each rank, since ranks work together under ZeRO stage 3; what is too many is dropped.
        numbers = local_share([i % count for i in range(count + -count % world())], rank(), world())
        size = self.engine.batches.micro
        own: list[Answer] = []
        with self.engine.models_on_device("ref", "reward"), self.start_policy(policy) as reference:
            for start in range(0, len(numbers), size):
                own += self.part(policy, numbers[start : start + size], reference)
                if show is not None:
                    show(len(own), len(numbers))
        return from_shares(own, count)

    @contextmanager
    def start_policy(self, policy: Any) -> Iterator[Any]:
        """Hold the policy that training started from meanwhile. Before the first update that is the actor too."""
        if policy is self.engine.ref or not self.has_begun:
            yield policy
            return
        with self.engine.start_policy() as start:
            yield start

    def part(self, policy: Any, numbers: list[int], start: Any) -> list[Answer]:
        """Answers to some of the prompts, with the KL to the policy that training started from."""
        engine, rollout = self.engine, self.config.rollout
        pad = int(engine.tokenizer.pad_token_id)
        prompts = [self.prompts[i] for i in numbers]
        batch = prompt_batch([prompt.ids for prompt in prompts], numbers, pad, engine.device)
        random = uniforms(self.config.seed, "evaluation", 0, numbers, rollout.max_new_tokens)
        sampler = engine.sampler_of(policy, rollout)
        with run_uncompiled(self.config.ppo.compile):
            sampler.sync()
            responses = sampler.generate(batch, torch.from_numpy(random).to(engine.device))
        actions = right_mask(responses.lengths, responses.tokens.size(1))
        ids = torch.cat([batch.ids, responses.tokens], 1)
        mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], 1)
        sequences = ids, mask, actions.size(1), rollout.temperature, self.config.ppo.packing
        logprobs = response_logprobs(policy, *sequences)[0]
        reference = logprobs if policy is start else response_logprobs(start, *sequences)[0]
        lengths, texts = responses.lengths.tolist(), decode_responses(responses.tokens, responses.lengths, engine.template)
        judged = ids, mask, actions.size(1), responses.ended
        records = [PromptRecord(prompt.prompt, prompt.meta) for prompt in prompts]
        samples = make_samples(records, texts, responses.ended)
        engine.note_prompts(batch, records)
        scores = engine.rewards.evaluate(engine.rewards.read_models(*judged), samples)
        kl = [float(masked_sum(k1(p, q), m)) for p, q, m in zip(logprobs, reference, actions, strict=True)]
        gold = engine.rewards.judge(judged, samples)
        if gold is None:
            gold = [self.gold(p.prompt, text) if self.gold else None for p, text in zip(prompts, texts, strict=True)]
        columns = zip([prompt.text for prompt in prompts], texts, scores, gold, kl, lengths, strict=True)
        return [Answer(*column) for column in columns]

    def samples(self, before: list[Answer], after: list[Answer], last: bool) -> list[dict[str, Any]]:
        """Answers side by side, for samples.jsonl: some, or all of the last evaluation."""
        start, trained = (side.key for side in kind_of(policy_stage(self.config)).sides)
        rows = []
        for old, new in list(zip(before, after, strict=True))[: None if last else SAMPLES_KEPT]:
            row: dict[str, Any] = {"prompt": old.prompt, start: old.response, trained: new.response}
            row |= {f"{start}_score": old.score, f"{trained}_score": new.score}
            if old.gold is not None and new.gold is not None:
                row |= {f"{start}_gold": old.gold, f"{trained}_gold": new.gold}
            rows.append(row)
        return rows


def compare(before: list[Answer], after: list[Answer]) -> dict[str, float]:
    """Mean figures of the policy and of the model it started from, with standard errors over prompts."""
    figures = (
        mean_with_error("eval/reward", [a.score for a in after])
        | mean_with_error("eval/reward_sft", [a.score for a in before])
        | mean_with_error("eval/kl_sequence", [a.kl for a in after])
        | mean_with_error("eval/length", [a.length for a in after])
        | mean_with_error("eval/length_sft", [a.length for a in before])
    )
    gold_before = [a.gold for a in before if a.gold is not None]
    gold_after = [a.gold for a in after if a.gold is not None]
    if gold_before:
        figures |= mean_with_error("eval/gold", gold_after) | mean_with_error("eval/gold_sft", gold_before)
        figures["eval/gold_sft_std"] = float(np.std(gold_before, ddof=min(1, len(gold_before) - 1)))
    return figures
