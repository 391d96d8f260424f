"""Held-out evaluation of a policy: its answers, their scores and gold rewards, and how far it is from another policy.

Any algorithm uses it, with any engine, training or frozen:

    judges = Judges(config, paths, tokenizer, packing)
    judges.load(device)
    evaluation = PolicyEvaluation(config, judges, heldout_prompts(source, tokenizer), size, packing, find_gold(config))
    before = evaluation.answer_prompts(start, sampler_of_start, start)
    after = evaluation.answer_prompts(policy, sampler, start)
    metrics = compare(before, after)  # declared in rlhf/catalog/metric.py: POLICY_EVALUATION
    rows = align(before, after, kind_of(stage).sides, is_last)  # for samples.jsonl
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.algo.errors import mean_with_error
from rlhf.algo.kl import k1, k3
from rlhf.algo.masked import masked_sum
from rlhf.catalog.stage import Side
from rlhf.config.schema import Config
from rlhf.data.dataset import Prompt as DataPrompt
from rlhf.data.encoded import Tokenizer
from rlhf.data.loaders import from_shares, local_share
from rlhf.data.records import require_records
from rlhf.data.templates import build_template
from rlhf.data.tokenized import DataSource, Prompts, open_data
from rlhf.data.tokens import PromptRecord, left_mask, prompt_batch, right_mask
from rlhf.models.forward import response_logprobs
from rlhf.rewards.judges import Gold, Judges
from rlhf.rewards.texts import decode_responses, to_plain
from rlhf.rollout.base import Sampler
from rlhf.runtime.distributed import device, rank, world
from rlhf.runtime.seeds import uniforms

# Answers that samples.jsonl keeps of an evaluation during training; of the last one it keeps all.
SAMPLES_KEPT = 16
# Is told how many of this rank's prompts are answered, and of how many.
Show = Callable[[int, int], None]


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
    """One response to a held-out prompt.

    Attributes:
        prompt: The prompt's text.
        response: The response's text.
        score: The weighted sum of the rewards' raw scores; None where there are no rewards but the gold one.
        gold: The gold reward; None where there is none.
        kl: The summed k1 estimate against the policy that training started from, in nats; None without one.
        length: Tokens, end-of-text included.
        entropy: The entropy of the policy's distributions with the sampling temperature, before top-k and top-p, mean over
            the response's tokens, in nats; None in checkpoints of earlier releases, as are those that follow.
        kl3: The summed k3 estimate of the same.
        ended: Whether the response reached its end.
        rewards: The raw score of each reward by its name; None where it does not apply.
        messages: The prompt's messages where it is a conversation, whose text is what the model reads.
    """

    prompt: str
    response: str
    score: float | None
    gold: float | None
    kl: float | None
    length: int
    entropy: float | None = None
    kl3: float | None = None
    ended: bool | None = None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    messages: list[dict[str, str]] | None = None


def heldout_prompts(source: DataSource, tokenizer: Tokenizer) -> list[Prompt]:
    """Return the held-out prompts that fit data.max_prompt_tokens. Raises ConfigError if there are none."""
    found: Prompts = open_data(source, tokenizer, "prompts", "heldout")
    require_records(found, "prompts", source.config)
    template, records = build_template(source.config.data, tokenizer), map(found.record, range(len(found)))
    return [Prompt(prompt, template.show(prompt), ids, meta) for ids, (prompt, meta) in zip(found, records, strict=True)]


class PolicyEvaluation:
    """Answers every held-out prompt once, with the sampling settings of the rollouts and the same random numbers each
    time, so that two policies differ by their weights alone.

    Args:
        config: The configuration: its seed, its `rollout`, its device.
        judges: The rewards, loaded before the first answer.
        prompts: The held-out prompts.
        size: Prompts that a rank answers at once.
        packing: How sequences are laid out for a forward pass, as `ppo.packing`.
        gold: Judges answers where the configuration's `gold` names nothing (`find_gold`).
        samples: Answers to each prompt.
    """

    def __init__(
        self, config: Config, judges: Judges, prompts: Sequence[Prompt], size: int, packing: str, gold: Gold | None,
        samples: int = 1,
    ) -> None:  # fmt: skip
        self.config, self.judges, self.prompts, self.gold = config, judges, prompts, gold
        self.size, self.packing, self.samples = size, packing, samples
        self.device = device(config)

    @torch.no_grad()
    def answer_prompts(
        self, policy: Any, sampler: Sampler, start: Any, show: Show | None = None, numbers: Sequence[int] | None = None
    ) -> list[Answer]:
        """Return the answers of a policy (an engine), drawn by its sampler, in the prompts' order, on every rank; `start`
        is the policy that the KL is measured to, which may be the same, or None. Of the samples of these `numbers` alone,
        where there are any: prompt i has those from i * samples on. All ranks must call this."""
        wanted = range(len(self.prompts) * self.samples) if numbers is None else numbers
        count = len(wanted)
        # Equally many on each rank, since ranks work together under ZeRO stage 3; what is too many is dropped.
        numbers = local_share([wanted[i % count] for i in range(count + -count % world())], rank(), world())
        own: list[Answer] = []
        for first in range(0, len(numbers), self.size):
            own += self.answer_some(policy, sampler, start, numbers[first : first + self.size])
            if show is not None:
                show(len(own), len(numbers))
        return from_shares(own, count)

    def answer_some(self, policy: Any, sampler: Sampler, start: Any, numbers: list[int]) -> list[Answer]:
        """Return the samples of these numbers."""
        rollout, judges = self.config.rollout, self.judges
        prompts = [self.prompts[i // self.samples] for i in numbers]
        batch = prompt_batch([p.ids for p in prompts], numbers, int(judges.tokenizer.pad_token_id), self.device)
        random = uniforms(self.config.seed, "evaluation", 0, numbers, rollout.max_new_tokens)
        sampler.sync()
        responses = sampler.generate(batch, torch.from_numpy(random).to(self.device))
        actions = right_mask(responses.lengths, responses.tokens.size(1))
        ids = torch.cat([batch.ids, responses.tokens], 1)  # [B, Q + R]
        mask = torch.cat([left_mask(batch.lengths, batch.ids.size(1)), actions], 1)
        sequences = ids, mask, actions.size(1), rollout.temperature, self.packing
        logprobs, entropies = response_logprobs(policy, *sequences, entropies=True)
        kl, kl3 = self.measure_kl(logprobs, policy, start, sequences, actions)
        lengths, texts = responses.lengths.tolist(), decode_responses(responses.tokens, responses.lengths, judges.template)
        records = [PromptRecord(prompt.prompt, prompt.meta) for prompt in prompts]
        found = judges.judge(batch, records, (ids, mask, actions.size(1), responses.ended), texts, self.gold)
        entropy = ((entropies * actions).sum(1) / actions.sum(1)).tolist()
        shown = [prompt.text for prompt in prompts]
        scores: list[float | None] = [*found.totals] if judges.total.terms else [None] * len(texts)
        raw = [{name: values[row] for name, values in found.raw.items()} for row in range(len(prompts))]
        ended = responses.ended.tolist()
        said = [None if isinstance(prompt.prompt, str) else to_plain(prompt.prompt) for prompt in prompts]
        columns = zip(shown, texts, scores, found.gold, kl, lengths, entropy, kl3, ended, raw, said, strict=True)
        return [Answer(*column) for column in columns]

    def measure_kl(
        self, logprobs: Tensor, policy: Any, start: Any, sequences: tuple[Tensor, Tensor, int, float, str], actions: Tensor
    ) -> tuple[list[float], list[float]] | tuple[list[None], list[None]]:
        """Return the summed k1 and k3 estimates of the KL of each response to `start`, from the policy's log-probabilities
        [B, R]; None each without it. `sequences` are what `response_logprobs` takes, `actions` [B, R] the mask."""
        if start is None:
            return [None] * len(logprobs), [None] * len(logprobs)
        reference = logprobs if policy is start else response_logprobs(start, *sequences)[0]
        rows = list(zip(logprobs, reference, actions, strict=True))
        return [float(masked_sum(k1(p, q), m)) for p, q, m in rows], [float(masked_sum(k3(p, q), m)) for p, q, m in rows]


def compare(before: list[Answer], after: list[Answer]) -> dict[str, float]:
    """Return the metrics of a policy's answers and of the answers, to the same prompts, of the policy that it started from,
    with standard errors over prompts. The gold reward is over the prompts of which it judges both answers."""
    metrics = (
        mean_with_error("eval/kl_sequence", [a.kl for a in after if a.kl is not None])
        | mean_with_error("eval/length", [a.length for a in after])
        | mean_with_error("eval/length_sft", [a.length for a in before])
    )
    scores_before, scores_after = ([a.score for a in side if a.score is not None] for side in (before, after))
    if scores_before:
        metrics |= mean_with_error("eval/reward", scores_after) | mean_with_error("eval/reward_sft", scores_before)
    both = [(b.gold, a.gold) for b, a in zip(before, after, strict=True) if b.gold is not None and a.gold is not None]
    gold_before, gold_after = [gold for gold, _ in both], [gold for _, gold in both]
    if both:
        metrics |= mean_with_error("eval/gold", gold_after) | mean_with_error("eval/gold_sft", gold_before)
        metrics["eval/gold_sft_std"] = float(np.std(gold_before, ddof=min(1, len(gold_before) - 1)))
    judged = (scores_before, scores_after) if scores_before else (gold_before, gold_after)
    if judged[0]:
        metrics |= mean_with_error("eval/win_rate", [win(b, a) for b, a in zip(*judged, strict=True)])
    entropies = [a.entropy for a in after if a.entropy is not None]
    return metrics | (mean_with_error("eval/entropy", entropies) if entropies else {})


def win(first: float, second: float) -> float:
    """Return 1 where the second score is the higher one, 0 where it is the lower one, 1/2 where they are equal."""
    return 0.5 if first == second else float(second > first)


def align(before: list[Answer], after: list[Answer], sides: Sequence[Side], is_last: bool) -> list[dict[str, Any]]:
    """Return answers to the same prompts side by side, for samples.jsonl, under the keys of their `sides`: some, or all of
    the last evaluation."""
    start, trained = (side.key for side in sides)
    rows = []
    for old, new in list(zip(before, after, strict=True))[: None if is_last else SAMPLES_KEPT]:
        row: dict[str, Any] = {"prompt": old.prompt, start: old.response, trained: new.response}
        row |= {} if old.messages is None else {"messages": old.messages}
        if old.score is not None and new.score is not None:
            row |= {f"{start}_score": old.score, f"{trained}_score": new.score}
        if old.gold is not None and new.gold is not None:
            row |= {f"{start}_gold": old.gold, f"{trained}_gold": new.gold}
        rows.append(row)
    return rows
