"""The texts of rollouts, for rewards that read texts."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from rlhf.data.encoded import Tokenizer
from rlhf.data.templates import Template
from rlhf.data.tokens import PromptRecord
from rlhf.rewards.sample import Sample, Span


def decode_responses(tokens: Tensor, lengths: Tensor, template: Template) -> list[str]:
    """Return the texts of responses [B, R] of these lengths [B], as the template reads them."""
    rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return [template.decode(row[:length]) for row, length in rows]


def decode_prompts(ids: Tensor, lengths: Tensor, tokenizer: Tokenizer) -> list[str]:
    """Return the texts of left-padded prompts [B, Q] of these lengths [B], as the model reads them."""
    rows = zip(ids.tolist(), lengths.tolist(), strict=True)
    return [tokenizer.decode(row[len(row) - length :], skip_special_tokens=True) for row, length in rows]


def make_samples(records: Sequence[PromptRecord], responses: Sequence[str], ended: Tensor) -> list[Sample]:
    """Join prompts and responses, of which `ended` [B] tells whether they came to their end; a prompt of messages becomes
    a list of dictionaries, which any function can read."""
    return [
        Sample(to_plain(record.text), response, dict(record.meta), bool(done))
        for record, response, done in zip(records, responses, ended, strict=True)
    ]


def place_spans(spans: Sequence[Sequence[Span]], tokens: Tensor, lengths: Tensor, template: Template) -> Tensor:
    """Put the values of spans of responses [B, R] of these lengths [B] on the tokens that end the spans; returns their sum
    on each token, [B, R], 0 elsewhere."""
    placed = torch.zeros(tokens.shape, device=tokens.device)
    for row, found in enumerate(spans):
        ids = tokens[row, : int(lengths[row])].tolist() if found else []
        ends = find_tokens(ids, [end for end, _ in found], template)
        for token, (_, value) in zip(ends, found, strict=True):
            placed[row, token] += value
    return placed


def find_tokens(ids: Sequence[int], ends: Sequence[int], template: Template) -> list[int]:
    """Return, for each number of characters of a response's text, the first token with which the response is decoded to as
    many of them; where decoding a part does not give the text's beginning, that is a later token, at most the last."""
    text = template.decode(ids)

    @cache
    def count_characters(token: int) -> int:
        both = zip(text, template.decode(ids[: token + 1]), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))

    return [min(bisect_left(range(len(ids)), end, key=count_characters), len(ids) - 1) for end in ends]


def to_plain(prompt: Any) -> Any:
    """Return a prompt's text, or its messages as dictionaries."""
    if isinstance(prompt, str):
        return prompt
    return [asdict(message) if is_dataclass(message) and not isinstance(message, type) else message for message in prompt]
