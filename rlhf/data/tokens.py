"""Token ids of records, and padded batches of them.

Prompts end where responses begin; a response ends with what ends a turn, unless it was cut. Padding is described by
lengths; nothing here or later compares ids with the padding token.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.data.dataset import Prompt
from rlhf.data.encoded import Encoded


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded sequences: `ids` [B, T], `lengths` [B], and where each response starts, `starts` [B]. `said` [B, T] is 1
    for each token that the assistant said, in any turn; None where it said the responses alone."""

    ids: Tensor
    lengths: Tensor
    starts: Tensor
    said: Tensor | None = None


@dataclass(frozen=True)
class PromptRecord:
    """A prompt's text, as the data set has it, and what else its record says, as the reference answer."""

    text: Prompt
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts, one for each response: `ids` [B, Q], `lengths` [B], and the number of each among all of the
    step, `samples` (B), from which its random stream derives. `limits` [B] are the tokens after which an answer ends,
    whatever is drawn; `copies` rows, one after another, are the same prompt. `records` (B) say what is known of each prompt
    besides its ids; there are none where it is not known. `draw` gives more prompts for the same rollout."""

    ids: Tensor
    lengths: Tensor
    samples: list[int]
    limits: Tensor | None = None
    copies: int = 1
    records: Sequence[PromptRecord] = ()
    draw: Callable[[int], "PromptBatch"] | None = None

    def more(self, number: int) -> "PromptBatch":
        """Draw other prompts for the same rollout, for the `number`-th time. Raises RuntimeError if nothing can."""
        if self.draw is None:
            raise RuntimeError(
                "ppo.dynamic_sampling=true: these prompts come from a loader that draws no others for a rollout"
            )
        return self.draw(number)

    def to(self, device: torch.device) -> "PromptBatch":
        """Return the same prompts on a device."""
        limits = None if self.limits is None else self.limits.to(device)
        return replace(self, ids=self.ids.to(device), lengths=self.lengths.to(device), limits=limits)

    def rows(self, rows: Tensor, numbers: Sequence[int] | None = None) -> "PromptBatch":
        """Select some of the prompts by row. `numbers` are the rows too, where the host has them: it need not wait for the
        device then."""
        limits = None if self.limits is None else self.limits[rows]
        chosen = rows.tolist() if numbers is None else numbers
        samples, records = [self.samples[row] for row in chosen], [self.records[row] for row in chosen if self.records]
        return PromptBatch(self.ids[rows], self.lengths[rows], samples, limits, records=records)


@dataclass(frozen=True)
class ComparisonBatch:
    """Answers, each once (`rows`), and pairs of them: row numbers of the preferred and the other one, [P], with
    weights [P] that sum to 1 per comparison element, the number of the element [P], and the pair's margin [P]."""

    rows: SequenceBatch
    chosen: Tensor
    rejected: Tensor
    weights: Tensor
    elements: Tensor
    margins: Tensor


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
    if all(item.loss is None for item in items):
        return SequenceBatch(ids, lengths, starts)
    said = [item.loss or [0] * len(item.prompt) + [1] * len(item.response) for item in items]
    marks = torch.tensor([row + [0] * (width - len(row)) for row in said], device=device)
    return SequenceBatch(ids, lengths, starts, marks)


def comparison_batch(
    elements: Sequence[Sequence[tuple[Encoded, Encoded]]], pad: int, device: torch.device | None = None
) -> ComparisonBatch:
    """Comparison elements as one batch in which every distinct answer of an element is one row."""
    rows: list[Encoded] = []
    chosen, rejected, weights, numbers, margins = [], [], [], [], []
    for number, element in enumerate(elements):
        places: dict[tuple[int, ...], int] = {}
        for pair in element:
            for answer in pair:
                if places.setdefault(tuple(answer.response), len(rows)) == len(rows):
                    rows.append(answer)
            chosen.append(places[tuple(pair[0].response)])
            rejected.append(places[tuple(pair[1].response)])
            weights.append(1.0 / len(element))
            numbers.append(number)
            margins.append(pair[0].margin)
    batch = sequence_batch(rows, pad, device)
    return ComparisonBatch(
        batch,
        torch.tensor(chosen, device=device),
        torch.tensor(rejected, device=device),
        torch.tensor(weights, device=device),
        torch.tensor(numbers, device=device),
        torch.tensor(margins, device=device),
    )


def prompt_batch(
    prompts: Sequence[list[int]], samples: list[int], pad: int, device: torch.device, copies: int = 1
) -> PromptBatch:
    """Prompts as one left-padded batch, each `copies` times: a row for each of `samples`."""
    prompts = [prompt for prompt in prompts for _ in range(copies)]
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    return PromptBatch(ids, torch.tensor([len(prompt) for prompt in prompts], device=device), samples, copies=copies)


def to_prompt_batch(prompts: PromptBatch | Mapping[str, Tensor], rank: int, copies: int = 1) -> PromptBatch:
    """Return prompts as a batch: as they are, or from DeepSpeed-Chat's dictionary of left-padded ids and their mask,
    `prompt` and `prompt_att_mask` [B, Q], of which each rank has as many: each prompt once, for its `copies` responses.
    Raises ValueError for prompts that are padded on the right."""
    if isinstance(prompts, PromptBatch):
        return prompts
    ids, mask = (prompts[name].repeat_interleave(copies, dim=0) for name in ("prompt", "prompt_att_mask"))
    lengths = mask.sum(1)
    if not bool((mask.bool() == left_mask(lengths, mask.size(1)).bool()).all()):
        raise ValueError("prompt_att_mask: prompts are padded on the left; set tokenizer.padding_side = 'left'")
    return PromptBatch(ids, lengths, list(range(rank * len(ids), (rank + 1) * len(ids))), copies=copies)


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


def assistant_mask(batch: SequenceBatch) -> Tensor:
    """[B, T] mask of the tokens that the assistant said, in any turn."""
    return response_mask(batch) if batch.said is None else batch.said
