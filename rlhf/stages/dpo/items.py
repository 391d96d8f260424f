"""What a step learns from, pairs or single responses with a label, with the reference's log-probabilities; and the
log-probabilities under a policy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.algo.masked import masked_sum_rows
from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Dpo
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import evenly, from_shares
from rlhf.data.tokenized import Comparisons, LabelledResponses
from rlhf.data.tokens import SequenceBatch, response_mask, right_mask, sequence_batch
from rlhf.models.forward import micro_batches, target_logprobs
from rlhf.runtime.distributed import is_main, rank
from rlhf.tracking.progress import Bar

# Log-probabilities of an item's responses, in nats.
Sums = tuple[float, ...]


@dataclass(frozen=True)
class Item:
    """A pair, or a response with a label.

    Attributes:
        answers: The chosen and the rejected response to a prompt, or the one response.
        reference: Their log-probabilities under the reference, in nats; empty where they are not known.
        desirable: Whether the one response is desirable.
        mismatched: The same prompt with the responses to another one, which the KL to the reference is estimated from.
    """

    answers: tuple[Encoded, ...]
    reference: Sums = ()
    desirable: bool = True
    mismatched: "Item | None" = None

    @property
    def length(self) -> int:
        """The tokens of all responses, each with its prompt."""
        return sum(answer.length for answer in self.answers)


class Items(Sequence[Item]):
    """The pairs or the labelled responses of a data set, read from disk when they are asked for.

    Attributes:
        rows: The records.
        others: The number of the item whose responses each item's prompt is mismatched with, [items]; None where nothing is
            estimated from such items.
        reference: The reference's log-probabilities of some items, by their numbers.
        mismatched_reference: Its log-probabilities of these items, mismatched.
    """

    def __init__(self, rows: Comparisons | LabelledResponses, mismatched: bool = False) -> None:
        self.rows = rows
        self.others = find_other_prompts(rows.groups) if mismatched else None
        self.reference: Mapping[int, Sums] = {}
        self.mismatched_reference: Mapping[int, Sums] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        """Return an item, or, of a slice, a list of them."""
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        item = self.match(number)
        return item if self.others is None else replace(item, mismatched=self.join_prompt(item.answers[0], number))

    def match(self, number: int) -> Item:
        """Return an item as its record has it."""
        reference = self.reference.get(number, ())
        if isinstance(self.rows, LabelledResponses):
            return Item((self.rows[number],), reference, bool(self.rows.desirable[number]))
        (pair,) = self.rows[number]
        return Item(pair, reference)

    def mismatch(self, number: int) -> Item:
        """Return the prompt of an item with the responses to another prompt."""
        return self.join_prompt(self.match(number).answers[0], number)

    def join_prompt(self, own: Encoded, number: int) -> Item:
        """Return the prompt of `own`, an answer of the item of this number, with the responses to another prompt."""
        assert self.others is not None
        other = self.match(int(self.others[number]))
        answers = tuple(replace(answer, prompt=own.prompt, loss=None) for answer in other.answers)
        return Item(answers, self.mismatched_reference.get(number, ()), other.desirable)


def find_other_prompts(prompts: np.ndarray) -> np.ndarray:
    """Return for each record, whose prompts have these numbers [records], the next record with another prompt, from the
    first again after the last. Raises ConfigError where all prompts are one."""
    if (prompts == prompts[0]).all():
        problem = "it compares responses to different prompts, and all records have one prompt"
        raise ConfigError("dpo.loss", "kto", problem, "choose dpo.loss=dpo, or give records of several prompts")
    count, twice = len(prompts), np.concatenate([prompts, prompts])
    changes = np.flatnonzero(twice[1:] != twice[:-1]) + 1
    return changes[np.searchsorted(changes, np.arange(count), side="right")] % count


class Selected(Sequence[Item]):
    """Some items, by their numbers, each read by `read` when it is asked for."""

    def __init__(self, read: Callable[[int], Item], numbers: Sequence[int]) -> None:
        self.read, self.numbers = read, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        """Return an item."""
        return self.read(self.numbers[row])


@dataclass(frozen=True)
class Found:
    """Log-probabilities of N items with A responses each, summed over a response, in nats: the policy's, and the
    reference's, which are 0 where there is none; with the responses' tokens, all [N, A]. `desirable` [N] is the label of
    single responses."""

    sums: Tensor
    reference: Tensor
    tokens: Tensor
    desirable: Tensor


def join_items(items: Sequence[Item], pad: int, device: torch.device | None = None) -> SequenceBatch:
    """Return the answers that a step reads, those of an item one after another."""
    return sequence_batch([answer for item in items for answer in item.answers], pad, device)


def read_items(engine: Any, items: Sequence[Item], dpo: Dpo, pad: int) -> Found:
    """Return the log-probabilities of items under the policy, beside the reference's."""
    batch = join_items(items, pad, engine.device)
    actions = response_mask(batch)
    real = right_mask(batch.lengths, batch.ids.size(1))
    logprobs = target_logprobs(engine, batch.ids, real, actions, dpo.packing)  # [N A, T]
    shape = len(items), len(items[0].answers)
    reference = [item.reference or (0.0,) * len(item.answers) for item in items]
    return Found(
        masked_sum_rows(logprobs, actions).view(shape),
        torch.tensor(reference, device=engine.device),
        actions.sum(1).view(shape),
        torch.tensor([item.desirable for item in items], device=engine.device),
    )


@torch.no_grad()
def read_all(engine: Any, items: Sequence[Item], plan: Batches, dpo: Dpo, pad: int, label: str) -> list[Sums]:
    """Return the log-probabilities of each item's responses under the model as it is, in nats, on every rank. A bar has
    this label."""
    engine.eval()
    own: list[Sums] = []
    with Bar(label, len(items), is_main()) as bar:
        for part, _ in evenly(items, plan, rank()):
            own += map(tuple, read_items(engine, part, dpo, pad).sums.tolist())
            bar.update(min(len(own) * plan.ranks, len(items)), {"reading": "log-probabilities"})
    return from_shares(own, len(items))


def share_items(engine: Any, items: Sequence[Item], size: int, packing: str) -> Iterator[list[Item]]:
    """Yield a step's items in forward passes of `size` items at most; without padding by length."""
    order = list(range(len(items)))
    if packing != "none":
        order = sorted(order, key=lambda row: -items[row].length)
    for part in micro_batches(order, size, packing, engine):
        yield [items[row] for row in part]
