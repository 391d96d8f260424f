"""Attention of one new token per row over a cache of slots, of which each row fills one run.

On a GPU, in half precision, one kernel reads the run of each row and nothing else. A tensor in the place of the mask tells
it of the runs (`Runs`): models pass it on as it is, as they do every mask of four dimensions.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlhf.runtime.compat.torch import cached_attention_kernel

kernel: Any = cached_attention_kernel()
# Numbers near 1 in bf16, summed in another order: a wrong row or slot is off by 0.1 and more.
KERNEL_GAP = 0.03
# The lines of the tensor of runs.
STARTS, LENGTHS, QUERIES = range(3)


def held_tokens(lengths: Tensor, size: int) -> Tensor:
    """Return how many slots each of `size` rows holds, [size]: `lengths` [B] for the first, and 1 for those that have
    ended, since a row that sees nothing would be NaN."""
    return torch.cat([lengths, lengths.new_ones(size - len(lengths))])


class SlotMask:
    """The slots that hold a token, of up to `rows` rows of a cache of `slots` slots: a mask [rows, slots] that is added to
    scores, 0 where a slot holds a token and else minus infinity."""

    def __init__(self, rows: int, slots: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.indices = torch.arange(slots, device=device)
        self.mask = torch.zeros(rows, slots, dtype=dtype, device=device)

    def begin(self, lengths: Tensor, end: int, size: int) -> None:
        """Start a batch of `size` rows whose prompts, of `lengths` [B], end before slot `end`."""
        held = held_tokens(lengths, size)
        hidden = (self.indices < end - held[:, None]) | (self.indices >= end)
        self.mask[:size] = torch.zeros_like(hidden, dtype=self.mask.dtype).masked_fill_(hidden, -torch.inf)

    def add(self, rows: int, slot: Tensor) -> None:
        """Add a token to each of the first `rows` rows, in the slot `slot` [1]."""
        self.mask[:rows].index_fill_(1, slot, 0.0)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Move rows to other places."""
        self.mask[places] = self.mask[rows]

    def seen(self, rows: int, slots: int) -> Tensor:
        """Return the mask of the first rows and slots, [rows, 1, 1, slots]."""
        return self.mask[:rows, None, None, :slots]

    def within(self, window: int | None, rows: int, slots: int, slot: Tensor) -> Tensor:
        """Return the mask without slots that lie `window` or more before the slot `slot` [1]."""
        mask = self.seen(rows, slots)
        if window is None or slots <= window:
            return mask
        return mask.masked_fill(self.indices[:slots] <= slot - window, -torch.inf)


class Runs:
    """The run of slots that each row fills, as the kernel reads it: int32 [1, 1, 3, rows + 1] with, for each row, the index
    at which its run begins among the slots of all rows, the run's length, and the index of its query. The last column ends
    the line of queries."""

    def __init__(self, rows: int, slots: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.slots = slots
        self.runs = torch.zeros(1, 1, 3, rows + 1, dtype=torch.int32, device=device)
        self.numbers = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self.runs[0, 0, QUERIES] = self.numbers

    def begin(self, lengths: Tensor, end: int, size: int) -> None:
        """Start a batch of `size` rows whose prompts, of `lengths` [B], end before slot `end`."""
        held = held_tokens(lengths, size)
        self.runs[0, 0, STARTS, :size] = self.numbers[:size] * self.slots + (end - held)
        self.runs[0, 0, LENGTHS, :size] = held

    def add(self, rows: int, slot: Tensor) -> None:
        """Add a token to each of the first `rows` rows, in the slot that follows its run."""
        self.runs[0, 0, LENGTHS, :rows].add_(1)

    def move(self, rows: Tensor, places: Tensor) -> None:
        """Move rows to other places."""
        starts, lengths, numbers = self.runs[0, 0, STARTS], self.runs[0, 0, LENGTHS], self.numbers
        starts[places] = starts[rows] + (numbers[places] - numbers[rows]) * self.slots
        lengths[places] = lengths[rows]

    def seen(self, rows: int, slots: int) -> Tensor:
        """Return the runs of the first rows, [1, 1, 3, rows + 1]; they are within the first `slots` slots."""
        return self.runs[..., : rows + 1]

    def within(self, window: int | None, rows: int, slots: int, slot: Tensor) -> Tensor:
        """Return the runs of the first rows: the kernel itself looks at the window."""
        return self.seen(rows, slots)


def attend_runs(
    query: Tensor, key: Tensor, value: Tensor, runs: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """Compute attention [B, 1, H, D] of queries [B, H, 1, D] over keys and values [B, K, S, D], of which rows hold `runs`
    [1, 1, 3, B + 1]. `window`: how many of the last keys are seen. The storage of the cache is [rows, slots, K, D]."""
    starts, lengths, queries = runs[0, 0]
    width = (-1, -1) if window is None else (window - 1, 0)
    attended: Any = kernel(
        query[:, :, 0], flat(key), flat(value), queries, starts, 1, key.size(2), 0.0, False, False,
        scale=scale, window_size_left=width[0], window_size_right=width[1], seqused_k=lengths[:-1],
    )  # fmt: skip
    found: Tensor = attended[0][:, None]
    return found


@cache
def kernel_agrees(device: torch.device, dtype: torch.dtype, heads: int, shared: int, width: int) -> bool:
    """Try once on this device whether the kernel gives what the mask gives: torch does not document this use of it.
    `heads` have `shared` keys and values of `width` elements. Warns of a kernel that does not."""
    rows, slots, draw = 3, 24, torch.Generator().manual_seed(0)
    mask, runs = SlotMask(rows, slots, device, dtype), Runs(rows, slots, device)
    for held in (mask, runs):
        held.begin(torch.tensor([1, 7, 16], device=device), 16, rows)
    query = torch.randn(rows, heads, 1, width, generator=draw).to(device, dtype)
    key, value = (torch.randn(rows, slots, shared, width, generator=draw).to(device, dtype).transpose(1, 2) for _ in "kv")
    wanted = attend_folded(query, key, value, mask.seen(rows, slots)).float()
    try:
        gap = float((attend_runs(query, key, value, runs.seen(rows, slots)).float() - wanted).abs().max())
        problem = None if gap <= KERNEL_GAP else f"the kernel is off by {gap:.3g}"
    except RuntimeError as error:
        problem = str(error)
    if problem is not None:
        warnings.warn(f"attention over the cache is read through a mask, slower: {problem}", stacklevel=2)
    return problem is None


def flat(cache: Tensor) -> Tensor:
    """Return the slots of all rows one after another, [slots, K, D], of [B, K, S, D] seen in a cache with more slots."""
    rows, heads, slots, width = cache.shape
    whole = cache.stride(0) // cache.stride(2)
    return cache.as_strided(((rows - 1) * whole + slots, heads, width), (cache.stride(2), cache.stride(1), 1))


def attend_folded(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """Compute attention [B, 1, H, D] of queries [B, H, 1, D] over keys and values [B, K, S, D]: the H / K heads that share
    keys are so many queries, so that no key is copied for each of them. The mask [B, 1, 1, S] is True where a key is
    seen, or is added to the scores."""
    folded = query.unflatten(1, (key.size(1), -1)).squeeze(3)
    if softcap is None:
        attended = torch.nn.functional.scaled_dot_product_attention(folded, key, value, mask, scale=scale)
    else:
        attended = attend_capped(folded, key, value, mask, softcap, scale)
    return attended.flatten(1, 2)[:, None]


def attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float,
    scale: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """Compute attention [B, K, T, D] whose scores are bent into [-softcap, softcap] by tanh (Gemma 2, arXiv 2408.00118,
    section 2). The mask is True where a key is seen, or is added to the scores."""
    scores = query @ key.transpose(2, 3) * ((query.size(-1) ** -0.5 if scale is None else scale) / softcap)
    scores = softcap * torch.tanh(scores)
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value
