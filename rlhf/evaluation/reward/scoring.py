"""Scores of texts by reward models, and their log-probabilities by policies, in forward passes that read each text once and
hardly any padding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.data.dataset import Demonstration
from rlhf.data.encoded import Encoded
from rlhf.data.row_encoder import RecordEncoder, encode_all
from rlhf.data.templates import Template
from rlhf.data.tokens import SequenceBatch, response_mask, right_mask, sequence_batch
from rlhf.evaluation.reward.statistics import Array
from rlhf.evaluation.reward.texts import Reading, Text
from rlhf.models.forward import Room, make_room, response_scores, target_logprobs
from rlhf.models.heads import SCALE
from rlhf.runtime.distributed import gather, maximum, rank, world

# Sequences of a forward pass at most, however short they are.
MOST_ROWS = 1024


@dataclass(frozen=True)
class Reader:
    """A model that reads texts as it was trained to: a reward model, or a policy.

    Attributes:
        name: What messages call it.
        model: The model, or its engine.
        template: How it reads a prompt and a response.
        device: Where it is.
        tokens: The tokens of a forward pass at most, unless one text has more.
        packing: How sequences are laid out (`reward.packing`).
    """

    name: str
    model: Any
    template: Template
    device: torch.device
    tokens: int
    packing: str = "packed"

    @property
    def scale(self) -> float:
        """The number that its scores have been divided by since training (`reward.normalize`)."""
        return float(getattr(self.model.module.config, SCALE, 1.0))

    def encode(self, texts: Sequence[Text]) -> list[Encoded | str]:
        """Return the tokens of each text, cut as in training, or the reason why it cannot be read."""
        rows = encode_all(RecordEncoder(self.template), [Demonstration(*text) for text in texts])
        return [row if isinstance(row, str) else Encoded(row["prompt"], row["response"], row["cut"]) for row in rows]

    def score(self, items: Sequence[Encoded]) -> Array:
        """Return the score of each text, [B]. Raises ConfigError for a score that is no finite number."""

        def read(batch: SequenceBatch) -> Tensor:
            return response_scores(self.model, batch.ids, right_mask(batch.lengths, batch.ids.size(1)), self.packing)

        scores = self.read_all(items, read)
        if not np.isfinite(scores).all():
            problem = f"{int((~np.isfinite(scores)).sum())} of its {len(scores)} scores are no finite numbers"
            fix = "set precision.dtype=bf16 or fp32, or check its weights"
            raise ConfigError("model", self.name, problem, fix)
        return scores

    def sum_logprobs(self, items: Sequence[Encoded]) -> Array:
        """Return the log-probability of each response after its prompt, the sum over its tokens, [B] in nats."""

        def read(batch: SequenceBatch) -> Tensor:
            mask = right_mask(batch.lengths, batch.ids.size(1))
            return target_logprobs(self.model, batch.ids, mask, response_mask(batch), self.packing).sum(1)

        return self.read_all(items, read)

    @torch.no_grad()
    def read_all(self, items: Sequence[Encoded], read: Callable[[SequenceBatch], Tensor]) -> Array:
        """Return a number for each text, [B], each different one read once; the passes are shared among the ranks, which
        all make equally many."""
        known: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        keys = [known.setdefault((tuple(item.prompt), tuple(item.response)), len(known)) for item in items]
        different = [Encoded(list(prompt), list(response)) for prompt, response in known]
        room = make_room(MOST_ROWS, self.tokens, self.packing, self.model)
        passes = list(fill_in_order([item.length for item in different], room))
        own = passes[rank() :: world()]
        own += passes[:1] * (int(maximum(len(own))) - len(own))  # read once more: under ZeRO all ranks read together
        found: list[tuple[list[int], list[float]]] = []
        for rows in own:
            batch = sequence_batch([different[row] for row in rows], self.template.tokenizer.pad_token_id, self.device)
            found.append((rows, read(batch).double().tolist()))
        values = np.zeros(len(different))
        for part in gather(found):
            for rows, numbers in part:
                values[rows] = numbers
        return values[keys]


def fill_in_order(lengths: Sequence[int], room: Room) -> Iterator[list[int]]:
    """Yield the rows of each pass, the longest first, as many together as there is room for; one at least."""
    part: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = [lengths[other] for other in (*part, row)]
        if part and (len(longest) > room.rows or not room.holds(longest)):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def read_texts(reader: Reader, texts: Sequence[Text]) -> Reading:
    """Return the scores of texts by a reward model; a text that it cannot read has none."""
    encoded, kept, items = split_readable(reader.encode(texts))
    scores, lengths = np.full(len(texts), np.nan), np.zeros(len(texts))
    scores[kept], lengths[kept] = reader.score(items), [len(item.response) for item in items]
    cut = np.array([isinstance(item, Encoded) and item.cut for item in encoded], dtype=bool)
    reasons = [item if isinstance(item, str) else "" for item in encoded]
    return Reading(scores, reader.scale, lengths, cut, reasons)


def split_readable(encoded: list[Encoded | str]) -> tuple[list[Encoded | str], list[int], list[Encoded]]:
    """Return texts as they were encoded, the numbers of those that can be read, and these alone."""
    kept = [(number, item) for number, item in enumerate(encoded) if isinstance(item, Encoded)]
    return encoded, [number for number, _ in kept], [item for _, item in kept]


def read_logprobs(policy: Reader, texts: Sequence[Text]) -> tuple[Array, Array]:
    """Return the log-probability of each text's response by a policy, and its tokens, [B] each; NaN for a text that the
    policy cannot read."""
    _, kept, items = split_readable(policy.encode(texts))
    found, tokens = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
    found[kept], tokens[kept] = policy.sum_logprobs(items), [len(item.response) for item in items]
    return found, tokens
