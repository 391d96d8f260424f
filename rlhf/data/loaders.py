"""Which records are in which batch. The global batch of a step is the same whatever the number of ranks; a rank takes its
contiguous share of it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf.config.derive import Batches, count_batches, ranks
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokenized import DataSource, Prompts, open_data
from rlhf.data.tokens import PromptBatch, PromptRecord, prompt_batch
from rlhf.runtime import distributed
from rlhf.runtime.seeds import random_stream


def steps_per_epoch(records: int, batch_size: int, key: str) -> int:
    """Whole batches in one pass; the few records left over sit out, different ones each time."""
    if records == 0:
        raise ConfigError(key, batch_size, "there are no records", "check the columns and data.max_prompt_tokens")
    if records < batch_size:
        raise ConfigError(key, batch_size, f"there are only {records} records to take a batch from", f"try {records}")
    return records // batch_size


def epoch_batches(records: int, batch_size: int, seed: int, purpose: str, epoch: int) -> list[list[int]]:
    """Return the global batches of one pass, in an order of its own for each (seed, purpose, epoch)."""
    order = random_stream(seed, purpose, epoch).permutation(records).tolist()
    return [order[start : start + batch_size] for start in range(0, records - batch_size + 1, batch_size)]


def all_batches(records: int, batch_size: int, seed: int, purpose: str, steps: int) -> Iterator[list[int]]:
    """Yield `steps` global batches, pass after pass."""
    per_epoch = steps_per_epoch(records, batch_size, purpose)
    for epoch in range(-(-steps // per_epoch)):
        yield from epoch_batches(records, batch_size, seed, purpose, epoch)[: steps - epoch * per_epoch]


def total_steps(records: int, batch_size: int, epochs: float, max_steps: int | None, key: str) -> int:
    """Return the batches in `epochs` passes over the records, or `max_steps` if that is less."""
    return count_batches(epochs, steps_per_epoch(records, batch_size, key), max_steps)


def local_share(batch: list[Any], rank: int, world: int) -> list[Any]:
    """Return a rank's share of a global batch."""
    per_rank = len(batch) // world
    return batch[rank * per_rank : (rank + 1) * per_rank]


def balanced_share(batch: list[Any], sizes: list[int], rank: int, world: int) -> list[Any]:
    """Return a rank's share of a global batch, of about as many tokens as another rank's: the records of these sizes,
    largest first, are dealt out."""
    order = sorted(range(len(batch)), key=lambda number: -sizes[number])
    return [batch[number] for number in order[rank::world]]


def evenly(items: Sequence[Any], plan: Batches, rank: int) -> Iterator[tuple[list[Any], Tensor]]:
    """Yield this rank's micro-batches of held-out items, each with weights [B]: 1, or 0 for an item that is there only so
    that all ranks have equally many, since they run forward passes together under ZeRO stage 3."""
    for part in even_shares(len(items), plan, rank):
        yield [items[number % len(items)] for number in part], torch.tensor([float(number < len(items)) for number in part])


def even_shares(count: int, plan: Batches, rank: int) -> list[list[int]]:
    """Return the numbers of this rank's micro-batches of `count` held-out items; numbers from `count` on stand for items
    that are read once more."""
    own = local_share(list(range(count + -count % plan.ranks)), rank, plan.ranks)
    return [own[start : start + plan.micro] for start in range(0, len(own), plan.micro)]


def from_shares(own: list[Any], count: int) -> list[Any]:
    """Return what all ranks found for their even shares of `count` held-out items, in the items' order, on every rank."""
    return [found for part in distributed.gather(own) for found in part][:count]


class PromptLoader:
    """The prompts of step 3: iterating gives one PromptBatch per rollout, this rank's share of the global one, in which
    each prompt stands once for each of its `rollout.samples_per_prompt` responses.

    Its length is the number of rollouts: `ppo.epochs` passes over the prompts, or `ppo.max_steps`.
    """

    def __init__(
        self, config: Config, prompts: Sequence[list[int]], pad: int, rank: int = 0, device: torch.device | None = None
    ) -> None:
        self.config, self.prompts, self.pad, self.rank = config, prompts, pad, rank
        self.device = device or torch.device("cpu")
        ppo, self.copies = config.ppo, config.rollout.samples_per_prompt
        self.size = ppo.rollout_batch_size // self.copies
        responses = len(prompts) * self.copies
        self.steps = total_steps(responses, ppo.rollout_batch_size, ppo.epochs, ppo.max_steps, "ppo.rollout_batch_size")

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[PromptBatch]:
        batches = all_batches(len(self.prompts), self.size, self.config.seed, "ppo.rollout_batch_size", self.steps)
        for step, batch in enumerate(batches):
            yield replace(self.load(batch, 0), draw=partial(self.draw, step))

    def draw(self, step: int, number: int) -> PromptBatch:
        """Draw more prompts for the rollout of a step, for the `number`-th time; their samples go on counting."""
        order = random_stream(self.config.seed, "more prompts", step, number).permutation(len(self.prompts))
        return self.load(order[: self.size].tolist(), number)

    def load(self, batch: list[int], number: int) -> PromptBatch:
        """Return this rank's share of a global batch of prompts."""
        world, first = ranks(self.config), number * self.size * self.copies
        samples = local_share(list(range(first, first + self.size * self.copies)), self.rank, world)
        own = local_share(batch, self.rank, world)
        made = prompt_batch([self.prompts[i] for i in own], samples, self.pad, self.device, self.copies)
        return replace(made, records=[record for record in self.read_records(own) for _ in range(self.copies)])

    def read_records(self, numbers: list[int]) -> list[PromptRecord]:
        """Return what is known of prompts by their numbers; nothing where they are ids alone."""
        known = self.prompts
        return [PromptRecord(*known.record(number)) for number in numbers] if isinstance(known, Prompts) else []


def create_prompt_dataloader(args: Config, tokenizer: Tokenizer, source: DataSource | None = None) -> PromptLoader:
    """Return the training prompts of `args.data` (or of a data set that is opened already), encoded, for this rank and its
    device; those too long for data.truncation are left out. They are encoded once, under `args.output_root`."""
    prompts = open_data(source or DataSource(args), tokenizer, "prompts", "train")
    return PromptLoader(args, prompts, tokenizer.pad_token_id, distributed.rank(), distributed.device(args))
