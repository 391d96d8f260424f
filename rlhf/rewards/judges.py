"""The rewards of a configuration with the reward models among them, as one object: what scores the responses of rollouts
and of evaluations, whichever algorithm trains the policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.rewards import name_models, reward_terms
from rlhf.config.schema import Config
from rlhf.data.dataset import Prompt
from rlhf.data.encoded import Tokenizer
from rlhf.data.templates import Template, build_saved_template, build_template
from rlhf.data.tokens import PromptBatch, PromptRecord
from rlhf.engine.zero import frozen_engine
from rlhf.experiment.graph import model_path
from rlhf.models.load import load_scorer
from rlhf.models.preflight import check_source
from rlhf.models.source import Source
from rlhf.models.tokenizer import have_same_vocabulary, load_tokenizer
from rlhf.rewards.model import ModelReward
from rlhf.rewards.sample import APPLIES, Sample, Span
from rlhf.rewards.texts import decode_prompts, decode_responses, make_samples, place_spans
from rlhf.rewards.total import RewardTotal
from rlhf.rollout.base import Responses

# A prompt's own gold reward of a response, as the demo's data has one.
Gold = Callable[[Prompt, str], float]
# Token ids [B, T] and their mask, how many of the last columns are the responses, and which of these ended [B].
Sequences = tuple[Tensor, Tensor, int, Tensor]


@dataclass(frozen=True)
class Judged:
    """The scores of some responses.

    Attributes:
        totals: The weighted sum of raw scores of each.
        raw: The raw scores by the names of the rewards; None where a reward does not apply.
        gold: The gold rewards; None where nothing judges.
    """

    totals: list[float]
    raw: dict[str, list[float | None]]
    gold: list[float | None]


class Judges:
    """The reward models and functions of a configuration. To build it looks at models and tokenizers alone; `load` reads
    the weights.

    Args:
        config: The configuration, whose `rewards` and `gold` these are.
        paths: Directories or hub ids of the reward models by their names among the stage's inputs; `reward` is the reward
            stage's own. A reward without one is read from its `path`.
        tokenizer: The policy's.
        packing: How sequences are laid out for a forward pass, as `ppo.packing`.

    Raises:
        ConfigError: a reward model has no path, or cannot be loaded.
    """

    def __init__(self, config: Config, paths: Mapping[str, str], tokenizer: Tokenizer, packing: str) -> None:
        self.config, self.tokenizer, self.packing = config, tokenizer, packing
        self.template = build_template(config.data, tokenizer)
        self.sources = find_judges(config, paths)
        for source in self.sources.values():
            check_source(source, config, scorer=True)
        self.known_prompts: dict[tuple[int, ...], Prompt] = {}
        self.templates = {name: self.other_template(source) for name, source in self.sources.items()}
        self.models: dict[str, Any] = {}

    def load(self, device: torch.device, lent: Mapping[str, Any] | None = None) -> None:
        """Load the reward models but for those that are `lent`, by their names, as engines."""
        config, lent = self.config, lent or {}
        self.device = device
        self.models = {
            name: lent[name]
            if name in lent
            else frozen_engine(load_scorer(source, config, config.reward_zero, 0.0), config, config.reward_zero)
            for name, source in sorted(self.sources.items())
        }
        scorers = {name: [self.scorer_of(model) for model in models] for name, models in name_models(config).items()}
        self.total = RewardTotal(config, scorers, device)

    def scorer_of(self, name: str) -> ModelReward:
        """Return a reward model, by its name among `models`, as a function of the policy's tokens."""
        model, other = self.models[name], self.templates[name]
        return ModelReward(model, other, self.template, self.packing, self.device, self.known_prompts)

    def other_template(self, source: Source) -> Template | None:
        """Return the template of a model whose tokenizer is another than the policy's, or whose template is; else None."""
        found = load_tokenizer(source.path, source.key, None, source.trust_remote_code)
        has_template = bool(found.chat_template)
        template = build_saved_template(self.config.data, found)
        same = not has_template or found.chat_template == self.tokenizer.chat_template
        return None if same and have_same_vocabulary(self.tokenizer, found) else template

    def note_prompts(self, prompts: PromptBatch, records: Sequence[PromptRecord]) -> None:
        """Keep the records of the prompts that are scored next: a reward model with a template of its own reads those."""
        rows = zip(prompts.ids.tolist(), prompts.lengths.tolist(), records, strict=True) if records else ()
        self.known_prompts.clear()
        self.known_prompts.update({tuple(ids[len(ids) - length :]): record.text for ids, length, record in rows})

    def read_samples(self, prompts: PromptBatch, responses: Responses) -> list[Sample]:
        """Return the texts of a rollout for the rewards that read them, with the prompts' records; none where only models
        score."""
        self.note_prompts(prompts, prompts.records)
        if not self.total.reads_texts and not any(APPLIES in record.meta for record in prompts.records):
            return []
        records = prompts.records
        if not records:
            texts = decode_prompts(prompts.ids, prompts.lengths, self.tokenizer)
            records = [PromptRecord(text, {}) for text in texts]
        texts = decode_responses(responses.tokens, responses.lengths, self.template)
        return make_samples(records, texts, responses.ended)

    def place_spans(self, spans: Sequence[Sequence[Span]], responses: Responses) -> Tensor | None:
        """Return the values of spans of responses on the tokens that end them, [B, R]; None where only models score."""
        if not self.total.reads_texts:
            return None
        return place_spans(spans, responses.tokens, responses.lengths, self.template)

    def judge(
        self, prompts: PromptBatch, records: Sequence[PromptRecord], sequences: Sequences, texts: Sequence[str],
        gold: Gold | None,
    ) -> Judged:  # fmt: skip
        """Score responses to prompts, whose texts are `texts`; `gold` judges them where the configuration's `gold` names
        nothing. All ranks must call this."""
        self.note_prompts(prompts, records)
        samples = make_samples(records, texts, sequences[-1])
        totals, raw = self.total.evaluate(self.total.read_models(*sequences), samples)
        judged = self.total.judge(sequences, samples)
        if judged is None:
            judged = [gold(record.text, text) if gold else None for record, text in zip(records, texts, strict=True)]
        return Judged(totals, raw, judged)


def find_judges(config: Config, paths: Mapping[str, str]) -> dict[str, Source]:
    """Return the reward models by their names. Raises ConfigError for one without a path."""
    trusted, judges = config.reward_model.trust_remote_code, dict[str, Source]()
    for reward, names in name_models(config).items():
        for name in names:
            path = paths.get(name) or reward_terms(config)[reward].path
            if path is None:
                problem, fix = (
                    f"rewards.{reward} reads that model",
                    f"give its path, or leave the reward out: ~rewards.{reward}",
                )
                key = "critic_model_name_or_path" if name == "reward" else f"reward_model_paths[{name}]"
                raise ConfigError(key, None, problem, fix)
            key = "ppo.reward" if name == "reward" else f"rewards.{reward}.path"
            judges[name] = Source(model_path(path), key, trust_remote_code=trusted)
    return judges
