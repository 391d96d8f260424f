"""What a stage will read of its data, looked at before anything starts: counts, lengths, steps, and what is missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf.catalog.stage import StageKind, kind_of
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import Config
from rlhf.config.terminal import plural
from rlhf.data.check import find_lacks
from rlhf.data.encoded import Encoded, Tokenizer
from rlhf.data.records import name_part
from rlhf.data.tokenized import Comparisons, DataSource, LabelledResponses, Tokenized, open_data
from rlhf.models.tokenizer import build_tokenizer, load_tokenizer
from rlhf.planner.work import count_steps
from rlhf.runtime.distributed import silence_libraries


@dataclass(frozen=True)
class StageData:
    """The training and the held-out records of a stage as token ids, its tokenizer, and its steps."""

    stage: str
    config: Config
    tokenizer: Tokenizer
    train: Tokenized[Any]
    heldout: Tokenized[Any]
    steps: int

    @property
    def identity(self) -> tuple[str, ...]:
        """What tells the data of a stage from other data."""
        return self.stage, str(self.train.path), str(self.heldout.path), str(self.steps)


@dataclass(frozen=True)
class Sample:
    """A record as a model reads it. `side` says which response it has: `response`, `chosen`, `rejected`, `desirable` or
    `undesirable`; None: none.
    `loss` is 1 for each token that the loss of the stage covers: for a scorer the last one, where the score is read."""

    stage: str
    side: str | None
    prompt: str
    response: str
    ids: list[int]
    loss: list[int]
    meta: dict[str, Any]
    prompt_tokens: int

    def describe(self) -> dict[str, Any]:
        """Return the record for scripts."""
        return {name: value for name, value in vars(self).items() if name != "prompt_tokens"}


def read_stage(config: Config, stage: str, source: DataSource) -> StageData:
    """Open what a stage reads, after making it where nobody has. Raises ConfigError where it cannot be read."""
    silence_libraries()
    kind = kind_of(stage)
    tokenizer = find_tokenizer(config, kind, source if source.path is None else DataSource(config))
    section = None if kind.section is None else get_key(config, kind.section)
    grouped, turns = getattr(section, "grouped", False), getattr(section, "loss_on", "") == "assistant"
    assert kind.reads is not None
    reads = kind.reads(config)
    train = open_data(source, tokenizer, reads, "train", grouped and reads == "comparisons", turns=turns)
    heldout = open_data(source, tokenizer, reads, "heldout", turns=turns)
    return StageData(stage, source.config, tokenizer, train, heldout, count_steps(config, kind, len(train)) or 0)


def find_tokenizer(config: Config, kind: StageKind, source: DataSource) -> Tokenizer:
    """Return the tokenizer of the model that a stage starts from, or, where a stage before it makes that model, the one
    that it will have."""
    if kind.loads is None and kind.inputs:
        first = kind.inputs[0]
        path = get_key(config, first.key)
        if path is not None:
            return load_tokenizer(path, first.key, None, config.model.trust_remote_code)
        if first.stage is not None:
            return find_tokenizer(config, kind_of(first.stage), source)
    group = kind.loads or kind.model_keys[0]
    return build_tokenizer(getattr(config, group), group, source)


def reading_problems(found: StageData) -> Iterator[ConfigError]:
    """Find what the records that fit lack for a stage."""
    numbers = {"train": found.train.counted.items, "heldout": found.heldout.counted.items}
    dropped = {"train": found.train.counted.dropped, "heldout": found.heldout.counted.dropped}
    yield from find_lacks(found.config, found.stage, numbers, dropped)


def count_overlap(stages: Sequence[StageData]) -> int:
    """Return how many different held-out prompts are training prompts too."""
    parts = [[found.train for found in stages], [found.heldout for found in stages]]
    train, heldout = (
        np.unique(np.concatenate([np.unique(part.rows.numbers("origin")) for part in each])) for each in parts
    )
    return len(np.intersect1d(train, heldout, assume_unique=True))


def reading_warnings(stages: Sequence[StageData]) -> Iterator[str]:
    """Tell what is doubtful of the records that are kept."""
    overlap = count_overlap(stages)
    if overlap:
        where = name_part(stages[0].config, "heldout")
        yield f"{where.key}={where.value}: {plural(overlap, 'prompt', ',')} of it stand among the training prompts too"
    for found in stages:
        ties = found.train.counted.ties + found.heldout.counted.ties
        if ties:
            what = "have the same response twice once they are cut: they teach and measure nothing"
            yield f"{found.stage}: {plural(ties, 'pair', ',')} {what}"
        if isinstance(found.train, LabelledResponses):
            yield from weigh_labels(found, found.train)


def weigh_labels(found: StageData, train: LabelledResponses) -> Iterator[str]:
    """Tell that desirable and undesirable responses do not weigh alike, as arXiv 2402.01306, section 4, asks."""
    dpo, desirable = found.config.dpo, int(train.desirable.sum())
    numbers = {"desirable_weight": desirable, "undesirable_weight": len(train) - desirable}
    if 0 in numbers.values():
        label = "desirable" if desirable else "undesirable"
        yield f"{found.stage}: all {plural(len(train), 'response', ',')} are {label}: nothing tells them from others"
        return
    weights = [getattr(dpo, name) * number for name, number in numbers.items()]
    if 0 in weights or 1 <= weights[0] / weights[1] <= 4 / 3:
        return
    name, own, other = ("desirable_weight", *weights) if weights[0] < weights[1] else ("undesirable_weight", *weights[::-1])
    told = " and ".join(
        f"{plural(number, key.removesuffix('_weight') + ' response', ',')}" for key, number in numbers.items()
    )
    fix = f"dpo.{name}={getattr(dpo, name) * other / own:.3g} makes them weigh alike"
    yield f"{found.stage}: {told}; together the desirable ones should weigh 1 to 4/3 times the others: {fix}"


def describe_data(stages: Sequence[StageData], warnings: Sequence[str], samples: int) -> dict[str, Any]:
    """Return what `python -m rlhf data --json` prints."""
    return {
        "stages": {found.stage: describe_stage(found) for found in stages},
        "overlap": count_overlap(stages),
        "warnings": list(warnings),
        "samples": [sample.describe() for found in stages for sample in first_samples(found, samples)],
    }


def describe_stage(found: StageData) -> dict[str, Any]:
    """Return the counts of the training records of a stage."""
    counted = found.train.counted
    counts = {"read": counted.read, "kept": counted.kept, "dropped": counted.dropped, "cut": counted.cut}
    return {**counts, "tokens": counted.tokens, "steps": found.steps}


def first_samples(found: StageData, number: int) -> Iterator[Sample]:
    """Yield the first training records of a stage as the model reads them, in the order of the file; of a comparison both
    responses."""
    kind, train = kind_of(found.stage), found.train
    training = None if kind.section is None else get_key(found.config, kind.section)
    is_scorer = all(card.scorer for card in kind.cards.values())
    for row in range(min(number, len(train.rows))):
        if isinstance(train, Comparisons):
            for side, answer in zip(("chosen", "rejected"), train.pair(row), strict=True):
                covered = 1 if is_scorer else len(answer.response)  # the last token, where the score is read
                yield make_sample(found, side, answer, row, [0] * (answer.length - covered) + [1] * covered)
            continue
        item = train[row]
        if isinstance(train, LabelledResponses):
            side = "desirable" if train.desirable[row] else "undesirable"
            yield make_sample(found, side, item, row, mark_loss(item, "completion"))
            continue
        if not isinstance(item, Encoded):
            yield make_sample(found, None, Encoded(item, []), row, [0] * len(item))
            continue
        yield make_sample(found, "response", item, row, mark_loss(item, getattr(training, "loss_on", "completion")))


def mark_loss(item: Encoded, loss_on: str) -> list[int]:
    """Return 1 for each token that the supervised loss covers, else 0."""
    if loss_on == "full":
        return [0] + [1] * (item.length - 1)
    said = item.loss if loss_on == "assistant" else None
    return said or [0] * len(item.prompt) + [1] * len(item.response)


def make_sample(found: StageData, side: str | None, item: Encoded, row: int, loss: list[int]) -> Sample:
    """Return a record as the model reads it, special tokens and all."""
    ids = item.prompt + item.response
    prompt, whole = (decode(found.tokenizer, part) for part in (item.prompt, ids))
    response = whole[len(prompt) :] if whole.startswith(prompt) else decode(found.tokenizer, item.response)
    return Sample(found.stage, side, prompt, response, ids, loss, found.train.record(row)[1], len(item.prompt))


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of token ids, special tokens and all."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
