"""The texts of rollouts, for rewards that read texts."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from torch import Tensor

from rlhf.data.encoded import Tokenizer
from rlhf.data.templates import Template
from rlhf.data.tokens import PromptRecord
from rlhf.rewards.sample import Sample


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


def to_plain(prompt: Any) -> Any:
    """Return a prompt's text, or its messages as dictionaries."""
    if isinstance(prompt, str):
        return prompt
    return [asdict(message) if is_dataclass(message) and not isinstance(message, type) else message for message in prompt]
