"""From text to token ids and padded batches.

Prompts end where responses begin: the response has a leading space and ends with end-of-text, unless it was cut. Padding
is described by lengths; nothing here or later compares ids with the padding token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rlhf.config.schema import Data
from rlhf.data.dataset import Comparison, Demonstration
from rlhf.data.plain import render_prompt, render_response

Tokenizer = Any  # transformers.PreTrainedTokenizerBase, which is slow to import


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and of a response to it; `cut` if the response's end, and with it end-of-text, is missing."""

    prompt: list[int]
    response: list[int]
    cut: bool = False

    @property
    def length(self) -> int:
        """The tokens of prompt and response."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded sequences: `ids` [B, T], `lengths` [B], and where each response starts, `starts` [B]."""

    ids: Tensor
    lengths: Tensor
    starts: Tensor


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts, one for each response: `ids` [B, Q], `lengths` [B], and the number of each among all of the
    step, `samples` (B), from which its random stream derives. `limits` [B] are the tokens after which an answer ends,
    whatever is drawn; `copies` rows, one after another, are the same prompt."""

    ids: Tensor
    lengths: Tensor
    samples: list[int]
    limits: Tensor | None = None
    copies: int = 1

    def to(self, device: torch.device) -> "PromptBatch":
        """Return the same prompts on a device."""
        limits = None if self.limits is None else self.limits.to(device)
        return replace(self, ids=self.ids.to(device), lengths=self.lengths.to(device), limits=limits)

    def rows(self, rows: Tensor) -> "PromptBatch":
        """Select some of the prompts by row."""
        limits = None if self.limits is None else self.limits[rows]
        return PromptBatch(self.ids[rows], self.lengths[rows], [self.samples[row] for row in rows.tolist()], limits)


@dataclass(frozen=True)
class ComparisonBatch:
    """Answers, each once (`rows`), and pairs of them: row numbers of the preferred and the other one, [P], with
    weights [P] that sum to 1 per comparison element."""

    rows: SequenceBatch
    chosen: Tensor
    rejected: Tensor
    weights: Tensor


def encode_prompt(prompt: str, tokenizer: Tokenizer, data: Data) -> list[int] | None:
    """Return a formatted prompt's ids, shortened to data.max_prompt_tokens; None where data.truncation leaves it out."""
    ids = prompt_ids(prompt, tokenizer, data)
    if len(ids) <= data.max_prompt_tokens:
        return ids
    if data.truncation == "left":
        return last_tokens(ids, data.max_prompt_tokens, tokenizer)
    return last_paragraphs(prompt, tokenizer, data) if data.truncation == "paragraphs" else None


def last_paragraphs(prompt: str, tokenizer: Tokenizer, data: Data) -> list[int] | None:
    """Ids of as many of a prompt's last paragraphs as fit data.max_prompt_tokens, at least one of them; None where the last
    one alone is too long.

    Doubles the number of paragraphs until they do not fit, then bisects. So no text is encoded that is much longer than
    what fits, and the time does not grow with the number of paragraphs that are dropped.
    """
    paragraphs = prompt.split("\n")

    def encode(count: int) -> list[int] | None:
        ids = prompt_ids("\n".join(paragraphs[-count:]), tokenizer, data)
        return ids if len(ids) <= data.max_prompt_tokens else None

    most = len(paragraphs) - 1  # all of them do not fit
    fits, count, found = 0, 1, None
    while count <= most and (longer := encode(count)) is not None:
        fits, found, count = count, longer, 2 * count
    too_many = min(count, most + 1)
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if (longer := encode(count)) is not None:
            fits, found = count, longer
        else:
            too_many = count
    return found


def last_tokens(ids: list[int], count: int, tokenizer: Tokenizer) -> list[int]:
    """Return the end of a prompt that is too long; the special tokens that it begins with (Llama's and Gemma's
    beginning-of-text) stay."""
    special = set(tokenizer.all_special_ids)
    start = next((place for place, token in enumerate(ids) if token not in special), 0)
    kept = ids[: min(start, count)]
    return kept + ids[max(start, len(ids) - count + len(kept)) :] if count > len(kept) else kept


def prompt_ids(prompt: str, tokenizer: Tokenizer, data: Data) -> list[int]:
    """Ids of a formatted prompt, with whatever the tokenizer puts before a text."""
    return text_ids(render_prompt(prompt, data), tokenizer)


def text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text that goes on: with the tokens that the tokenizer puts before a text, without any that it puts after
    one, as some put end-of-text there."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[: len(ids) - appended_tokens(tokenizer)]


@lru_cache(maxsize=8)
def appended_tokens(tokenizer: Tokenizer) -> int:
    """How many special tokens the tokenizer puts after a text."""
    plain, whole = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    starts = range(len(whole) - len(plain) + 1)
    start = next((start for start in starts if whole[start : start + len(plain)] == plain), 0)
    return len(whole) - start - len(plain)


def encode_response(response: str, tokenizer: Tokenizer, data: Data) -> list[int]:
    """Ids of a response: a leading space, at the end end-of-text. One that is longer than data.max_response_tokens is cut
    there, and has no end: what learns from it must not learn to stop in the middle of a sentence."""
    return encode_answer([], response, tokenizer, data).response


def encode_answer(prompt: list[int], response: str, tokenizer: Tokenizer, data: Data) -> Encoded:
    """Return a prompt's ids with those of a response to it (see `encode_response`), and whether the response was cut."""
    ids = list(tokenizer(render_response(response, data), add_special_tokens=False)["input_ids"]) + [tokenizer.eos_token_id]
    return Encoded(prompt, ids[: data.max_response_tokens], cut=len(ids) > data.max_response_tokens)


def encode_demonstrations(records: Sequence[Demonstration], tokenizer: Tokenizer, data: Data) -> list[Encoded]:
    """Demonstrations as ids, without those whose prompt does not fit."""
    prompts = [encode_prompt(record.prompt, tokenizer, data) for record in records]
    pairs = zip(prompts, records, strict=True)
    return [encode_answer(ids, record.response, tokenizer, data) for ids, record in pairs if ids is not None]


def encode_comparisons(
    records: Sequence[Comparison], tokenizer: Tokenizer, data: Data, grouped: bool
) -> list[list[tuple[Encoded, Encoded]]]:
    """Comparison elements: each pair by itself, or all pairs of a prompt together if `grouped`."""
    groups: dict[str, list[tuple[Encoded, Encoded]]] = {}
    for number, record in enumerate(records):
        prompt = encode_prompt(record.prompt, tokenizer, data)
        if prompt is None:
            continue
        pair = tuple(encode_answer(prompt, text, tokenizer, data) for text in (record.chosen, record.rejected))
        groups.setdefault(record.prompt if grouped else str(number), []).append((pair[0], pair[1]))
    return list(groups.values())


def count_truncated(answers: Iterable[Encoded]) -> dict[str, float]:
    """Metrics: how many distinct answers there are, and how many of them were cut at data.max_response_tokens."""
    distinct = {hash((tuple(answer.prompt), tuple(answer.response))): answer.cut for answer in answers}  # not all ids twice
    return {"data/responses": float(len(distinct)), "data/responses_cut": float(sum(distinct.values()))}


def sequence_batch(items: Sequence[Encoded], pad: int, device: torch.device | None = None) -> SequenceBatch:
    """Prompts and responses as one right-padded batch (on the host by default)."""
    rows = [item.prompt + item.response for item in items]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    starts = torch.tensor([len(item.prompt) for item in items], device=device)
    return SequenceBatch(ids, lengths, starts)


def comparison_batch(
    elements: Sequence[Sequence[tuple[Encoded, Encoded]]], pad: int, device: torch.device | None = None
) -> ComparisonBatch:
    """Comparison elements as one batch in which every distinct answer of an element is one row."""
    rows: list[Encoded] = []
    chosen, rejected, weights = [], [], []
    for element in elements:
        places: dict[tuple[int, ...], int] = {}
        for pair in element:
            for answer in pair:
                if places.setdefault(tuple(answer.response), len(rows)) == len(rows):
                    rows.append(answer)
            chosen.append(places[tuple(pair[0].response)])
            rejected.append(places[tuple(pair[1].response)])
            weights.append(1.0 / len(element))
    batch = sequence_batch(rows, pad, device)
    return ComparisonBatch(
        batch,
        torch.tensor(chosen, device=device),
        torch.tensor(rejected, device=device),
        torch.tensor(weights, device=device),
    )


def prompt_batch(
    prompts: Sequence[list[int]], samples: list[int], pad: int, device: torch.device, copies: int = 1
) -> PromptBatch:
    """Prompts as one left-padded batch, each `copies` times: a row for each of `samples`."""
    prompts = [prompt for prompt in prompts for _ in range(copies)]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    return PromptBatch(ids, torch.tensor([len(prompt) for prompt in prompts], device=device), samples, copies=copies)


def right_mask(lengths: Tensor, width: int) -> Tensor:
    """[B, width] mask of right-padded rows: 1 for the first `lengths` tokens."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()


def left_mask(lengths: Tensor, width: int) -> Tensor:
    """[B, width] mask of left-padded rows: 1 for the last `lengths` tokens."""
    return right_mask(lengths, width).flip(1)


def response_mask(batch: SequenceBatch) -> Tensor:
    """[B, T] mask of the response tokens, end-of-text included."""
    width = batch.ids.size(1)
    return right_mask(batch.lengths, width) * (1 - right_mask(batch.starts, width))
