"""The score of a response: the weighted sum of all rewards that apply to it. B responses of a rank, N rewards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.groups import normalize_in_groups
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import gold_term, trained_terms
from rlhf.config.schema import Config, RewardTerm
from rlhf.rewards.function import FunctionReward
from rlhf.rewards.http import HttpReward
from rlhf.rewards.model import ModelReward
from rlhf.rewards.sample import Reward, Sample, Span, SpannedScore
from rlhf.runtime.distributed import gather

# Added to a standard deviation before it divides.
EPSILON = 1e-8


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of all scores so far (Chan et al. 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: Sequence[float]) -> None:
        """Add scores."""
        if not scores:
            return
        count, mean = len(scores), math.fsum(scores) / len(scores)
        squares = math.fsum((score - mean) ** 2 for score in scores)
        gap, total = mean - self.mean, self.count + count
        self.squares += squares + gap**2 * self.count * count / total
        self.mean += gap * count / total
        self.count = total

    @property
    def deviation(self) -> float:
        """The standard deviation (of a population); 1 where fewer than two scores or equal ones tell none."""
        return math.sqrt(self.squares / self.count) if self.count > 1 and self.squares > 0 else 1.0


@dataclass(frozen=True)
class Scores:
    """Scores of a rollout.

    Attributes:
        total: [B], the weighted sum of the rewards.
        is_scored: [B], whether any reward applies.
        metrics: Metrics over all ranks.
        spans: Of each response the spans that a part of its total falls on, B lists.
        by_group: [B], the weighted sum of the rewards, each normalised within its group; only with `ppo.group_of=each`.
    """

    total: Tensor
    is_scored: Tensor
    metrics: dict[str, float]
    spans: list[list[Span]]
    by_group: Tensor | None = None


@dataclass(frozen=True)
class Column:
    """A reward's raw scores [B], which samples it applies to [B], and the spans of a text reward's scores, B tuples."""

    raw: Tensor
    applies: Tensor
    spans: list[tuple[Span, ...]] = field(default_factory=list)


class RewardTotal:
    """All rewards of a configuration, as one: models read the actor's tokens, functions the texts.

    Args:
        config: The configuration, whose `rewards` and `gold` these are.
        models: The scorers of the rewards that are models, by name: one, or the members of an ensemble.
        device: Where scores are put.
    """

    def __init__(self, config: Config, models: Mapping[str, Sequence[ModelReward]], device: torch.device) -> None:
        self.terms, self.device = trained_terms(config), device
        self.models = {name: found for name, found in models.items() if name in self.terms}
        self.texts = {name: build_text_reward(f"rewards.{name}", t) for name, t in self.terms.items() if name not in models}
        gold = gold_term(config)
        self.gold_models = models.get(str(config.gold), ())
        self.gold: Reward | None = None
        if gold is not None and not self.gold_models:
            in_rewards = config.gold is not None and hasattr(config.rewards, config.gold)
            self.gold = build_text_reward(f"rewards.{config.gold}" if in_rewards else "gold", gold)
        self.copies = config.rollout.samples_per_prompt if config.ppo.group_of == "each" else None
        self.moments = {name: Moments() for name, term in self.terms.items() if term.normalize == "running"}

    @property
    def reads_texts(self) -> bool:
        """Whether a reward that is trained on reads texts or records, so that samples are needed."""
        return bool(self.texts)

    def read_models(self, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
        """Return the raw scores of sequences [B, T] by the reward models, each member of an ensemble apart, [B, M]; the
        last `responses` columns are the responses, and `ended` [B] tells which of them reached end-of-text."""
        found = [model(ids, mask, responses, ended) for models in self.models.values() for model in models]
        return torch.stack(found, dim=1) if found else torch.zeros(len(ids), 0, device=ids.device)

    def ask(self, samples: Sequence[Sample]) -> None:
        """Let the functions begin to score the samples that each applies to; they work while the models read."""
        for name, reward in self.texts.items():
            reward.ask([sample for sample in samples if sample.is_scored_by(name)])

    def combine(self, by_models: Tensor, samples: Sequence[Sample], count: int | None = None) -> Scores:
        """Return the scores of a rollout: of the models [B, M], and of the functions that were asked. All ranks must call
        this: normalisation is over the samples of all of them. Metrics are of the first `count` responses; None: of all."""
        columns = self.raw_columns(by_models, samples)
        total, by_group = (torch.zeros(len(by_models), device=self.device) for _ in range(2))
        is_scored = torch.zeros(len(by_models), dtype=torch.bool, device=self.device)
        metrics: dict[str, float] = {}
        spans: list[list[Span]] = [[] for _ in range(len(by_models))]
        is_told = len(self.terms) > 1 or any(is_shaped(term) for term in self.terms.values())
        for name, term in self.terms.items():
            column, applies = columns[name], columns[name].applies
            own = column.raw[applies].double().tolist()
            every = [score for part in gather(own) for score in part]
            scores, scale = self.shape(name, term, column.raw, every)
            shaped = torch.where(applies, term.weight * scores, 0.0)
            total, is_scored = total + shaped, is_scored | applies
            for row, found in enumerate(column.spans):
                spans[row] += [(end, term.weight * scale * value) for end, value in found if applies[row]]
            if self.copies is not None:
                by_group = by_group + term.weight * normalize_in_groups(scores, self.copies, applies)
            if is_told:
                told = {"": column.raw, "_shaped": shaped}
                for ending, values in told.items():
                    metrics |= mean_of_all(f"reward/{name}{ending}", values[:count][applies[:count]].double().tolist())
        metrics |= self.measure_disagreement(by_models[:count])
        unscored = sum(gather(int((~is_scored[:count]).sum())))
        metrics |= {"reward/unscored": float(unscored)} if self.texts or unscored else {}
        on_spans = [math.fsum(value for _, value in found) for found in spans[:count]]
        metrics |= mean_of_all("reward/on_spans", on_spans) if any(gather(any(spans[:count]))) else {}
        return Scores(total, is_scored, metrics, spans, None if self.copies is None else by_group)

    def raw_columns(self, by_models: Tensor, samples: Sequence[Sample]) -> dict[str, Column]:
        """Return each reward's raw scores, by name."""
        columns = {}
        for name, members in self.split_members(by_models).items():
            named = [sample.is_scored_by(name) for sample in samples] or [True] * len(by_models)
            columns[name] = Column(combine_members(self.terms[name], members), torch.tensor(named, device=self.device))
        for name, answers in answers_of(self.texts).items():
            own = iter(answers)
            found = [next(own) if sample.is_scored_by(name) else None for sample in samples]
            applies = [score is not None for score in found]
            raw = torch.tensor([0.0 if score is None else float(score) for score in found], device=self.device)
            spans = [score.spans if isinstance(score, SpannedScore) else () for score in found]
            columns[name] = Column(raw, torch.tensor(applies, device=self.device), spans)
        return columns

    def split_members(self, by_models: Tensor) -> dict[str, Tensor]:
        """Return the scores by the models of each reward, [B, members], by name."""
        sizes = [len(models) for models in self.models.values()]
        return dict(zip(self.models, by_models.split(sizes, dim=1), strict=True)) if sizes else {}

    def measure_disagreement(self, by_models: Tensor) -> dict[str, float]:
        """Return how far the members of ensembles are from each other: their standard deviation, mean over the responses of
        all ranks."""
        metrics: dict[str, float] = {}
        for name, members in self.split_members(by_models).items():
            if members.size(1) > 1:
                metrics |= mean_of_all(f"reward/{name}_disagreement", members.std(dim=1, correction=0).tolist())
        return metrics

    def shape(self, name: str, term: RewardTerm, raw: Tensor, every: list[float]) -> tuple[Tensor, float]:
        """Normalise and cut a reward's scores [B]; `every` are those of all ranks. Returns what a part of a score is
        multiplied by, too."""
        scale = 1.0
        if term.normalize != "none":
            moments = self.moments.get(name) or Moments()
            if all(map(math.isfinite, every)):
                moments.update(every)
            raw = (raw - moments.mean) / (moments.deviation + EPSILON)
            scale = 1.0 / (moments.deviation + EPSILON)
        if term.clip is not None:
            raw = raw.clamp(-term.clip, term.clip)
        return raw, scale

    def evaluate(self, by_models: Tensor, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float | None]]]:
        """Return the weighted sum of raw scores, neither normalised nor cut, of each sample of this rank; and raw scores
        by the names of the rewards, None where one does not apply."""
        self.ask(samples)
        columns = self.raw_columns(by_models, samples)
        total = torch.zeros(len(by_models), device=self.device)
        for name, term in self.terms.items():
            total = total + torch.where(columns[name].applies, term.weight * columns[name].raw, 0.0)
        scores = {
            name: [s if applies else None for s, applies in zip(c.raw.tolist(), c.applies.tolist(), strict=True)]
            for name, c in columns.items()
        }
        return total.tolist(), scores

    def judge(self, sequences: tuple[Tensor, Tensor, int, Tensor], samples: Sequence[Sample]) -> list[float | None] | None:
        """Return the gold reward of each sample of this rank; None where `gold` names none. `sequences` are what
        `read_models` takes."""
        if self.gold_models:
            scores: list[float | None] = self.gold_models[0](*sequences).tolist()
            return scores
        if self.gold is None:
            return None
        self.gold.ask(samples)
        return answers_of({"gold": self.gold})["gold"]

    def state_dict(self) -> dict[str, Any]:
        """Return what changes as training goes on: the running statistics."""
        return {name: vars(moments).copy() for name, moments in self.moments.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take over the running statistics of a checkpoint."""
        for name, values in state.items():
            self.moments[name] = Moments(**values)

    def close(self) -> None:
        """End the processes of functions."""
        for reward in (*self.texts.values(), *([self.gold] if self.gold is not None else [])):
            reward.close()


def mean_of_all(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the metric `name`, the mean of the values of all ranks; nothing where there is none."""
    every = [value for part in gather(list(values)) for value in part]
    return {name: math.fsum(every) / len(every)} if every else {}


def combine_members(term: RewardTerm, members: Tensor) -> Tensor:
    """Return the score of an ensemble from those of its members [B, members], [B]: their mean, the least one, or the mean
    less `std_coef` times their standard deviation, of a population (Coste et al., arXiv 2310.02743)."""
    if members.size(1) == 1:
        return members[:, 0]
    if term.combine == "min":
        return members.min(dim=1).values
    mean = members.mean(dim=1)
    return mean if term.combine == "mean" else mean - term.std_coef * members.std(dim=1, correction=0)


def build_text_reward(key: str, term: RewardTerm) -> Reward:
    """Return a reward that reads texts; `key` is the group of its keys, for errors, or `gold`."""
    if term.kind == "http":
        return HttpReward(f"{key}.url", term)
    return FunctionReward(key if key == "gold" else f"{key}.function", term)


def is_shaped(term: RewardTerm) -> bool:
    """Whether a reward's part of the sum is another number than its raw score."""
    return term.weight != 1.0 or term.clip is not None or term.normalize != "none"


def answers_of(rewards: Mapping[str, Reward]) -> dict[str, list[float | None]]:
    """Wait for the scores of rewards that were asked. All ranks must call this. Raises ConfigError on all of them if one
    reward fails on one of them."""
    found: dict[str, list[float | None]] = {}
    problem: ConfigError | None = None
    for name, reward in rewards.items():
        try:
            found[name] = reward.answer()
        except ConfigError as error:
            problem = error
            break
    parts = None if problem is None else (problem.key, problem.value, problem.problem, problem.fix)
    first = next((failed for failed in gather(parts) if failed is not None), None) if rewards else None
    if first is not None:
        raise ConfigError(*first)
    return found
