"""The protocol of samplers, what they return, and what several of them share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch, right_mask
from rlhf.runtime.device import free_bytes, send_numbers

GIB = 2**30


@dataclass(frozen=True)
class Responses:
    """Sampled responses.

    Attributes:
        tokens: [B, R], right-padded with a valid id.
        lengths: [B] in tokens, end-of-text included.
        ended: [B], whether end-of-text or a stop text was reached.
        logprobs: [B, R] in float32 and nats, the sampler's own: with the sampling temperature, before penalties, top-k and
            top-p; 0 on padding.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    logprobs: Tensor


class Sampler(Protocol):
    """Draws responses from a model. One object serves one DeepSpeed engine, for one setting of `rollout`.

    Args:
        engine: The engine whose `module` is sampled from.
        tokenizer: Its tokenizer.
        rollout: How to sample.
    """

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> None: ...

    @staticmethod
    def problem(config: Config) -> ConfigError | None:
        """Say why this sampler cannot serve a configuration; None if it can. Called before anything starts, without a
        model, and in programs that only plan: it should not import torch."""

    def sync(self) -> None:
        """Bring the training weights to the sampler, where they are not the same tensors. Called before each `generate`, by
        all ranks together."""

    def generate(self, prompts: PromptBatch, draws: Tensor) -> Responses:
        """Answer prompts.

        `draws` [B, max_new_tokens] in [0, 1) decide each sample's tokens (sampling.next_tokens), so that a sample gets the
        same response in whatever batch, sampler or rank. Called by all ranks together.
        """
        ...

    def release(self) -> None:
        """Free what is kept for the next rollout. A later rollout makes it anew."""


# Of some rows: tokens and log-probabilities [B, R] (the rest after an end is undefined), lengths [B], whether ended [B].
Part = tuple[Tensor, Tensor, Tensor, Tensor]


@runtime_checkable
class KeepsMemory(Protocol):
    """A sampler that keeps memory, of a size that follows the longest prompt, for later rollouts."""

    longest_prompt: int


@dataclass(frozen=True)
class PromptPart:
    """Prompts that are answered together, the longest first, with their `draws` [B, R]. The host has their numbers among
    all prompts, `rows`, and their lengths in tokens, so that it need not ask the device."""

    prompts: PromptBatch
    draws: Tensor
    rows: list[int]
    lengths: list[int]


@contextmanager
def evaluation_mode(engine: Any) -> Iterator[None]:
    """Prepare an engine for sampling meanwhile: no gradients, no dropout, and no adapters if the engine is a model without
    them."""
    engine.eval()
    with torch.no_grad(), getattr(engine, "off", nullcontext)():
        yield


def generate_in_parts(
    prompts: PromptBatch, draws: Tensor, rollout: Rollout, sample: Callable[[PromptPart], Part]
) -> Responses:
    """Put together the responses that `sample` gives to parts of the prompts: the longest first,
    `rollout.micro_batch_size` at a time. The host waits for the device at the begin, for the prompts' lengths, and at the
    end, for the longest response."""
    count, width, device = len(prompts.samples), rollout.max_new_tokens, prompts.ids.device
    tokens, logprobs = prompts.ids.new_zeros(count, width), torch.zeros(count, width, device=device)
    lengths, ended = prompts.ids.new_zeros(count), torch.zeros(count, dtype=torch.bool, device=device)
    own: list[int] = prompts.lengths.tolist()
    order = sorted(range(count), key=lambda row: -own[row])
    parts = send_numbers(order, device).split(rollout.micro_batch_size or count)
    for rows in parts:
        numbers, order = order[: len(rows)], order[len(rows) :]
        part = PromptPart(prompts.rows(rows, numbers), draws[rows], numbers, [own[row] for row in numbers])
        tokens[rows], logprobs[rows], lengths[rows], ended[rows] = sample(part)
    longest = int(lengths.max())
    mask = right_mask(lengths, longest)
    return Responses(tokens[:, :longest] * mask, lengths, ended, logprobs[:, :longest] * mask)  # [B, longest]


def check_room(rows: int, slots: int, per_token: int, device: torch.device) -> None:
    """Raise ConfigError where a key-value cache of so many rows and slots does not fit the device; `per_token` is in
    bytes."""
    per_row, free = slots * per_token, free_bytes(device)
    if rows * per_row > free:
        fits = free // per_row
        wanted = f"the key-value cache of {rows} rows of {slots} tokens takes {rows * per_row / GIB:.2f} GiB"
        problem = f"{wanted}, and {free / GIB:.2f} GiB are free: {fits} rows fit"
        fix = f"try a divisor of the rank's responses up to {fits}" if fits else "shorten prompts and responses"
        raise ConfigError("rollout.micro_batch_size", rows, problem, fix)
