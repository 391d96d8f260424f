"""Decoding a batch of rows step by step: all that a step reads and writes lies in tensors whose addresses stay, so that on
a GPU one captured graph serves every step of a kind, in this rollout and in those to come."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch, left_mask
from rlhf.models.attention import reads_runs, takes_packed
from rlhf.models.cached import Runs, SlotMask
from rlhf.models.heads import accepted_inputs, model_inputs
from rlhf.planner.cache import PREFILL_TOKENS, SLOTS, next_size, round_up
from rlhf.rollout.base import Part
from rlhf.rollout.hybrid.cache import SlotCache
from rlhf.rollout.sampling import StopTexts, end_tokens, have_ended, next_tokens, seen_tokens
from rlhf.runtime.distributed import total

# Steps between two looks at which rows have finished: on a GPU each waits for all that was launched.
LOOK_EVERY = 8
# A prefill's rows have prompts of about one length: this share of the longest.
ALIKE = 0.75


@dataclass(frozen=True)
class GraphKey:
    """Tells one captured step from another: by its rows, the slots of the cache that it reads, and whether it may not end a
    response."""

    rows: int
    slots: int
    forbid: bool


class Decoder:
    """Decodes up to `rows` rows of `width` tokens after prompts of at most `longest` tokens. `together`: ranks go through
    each forward pass together, until the last row of all of them has ended."""

    def __init__(
        self, model: Any, rows: int, longest: int, tokenizer: Tokenizer, rollout: Rollout, together: bool,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.model, self.rollout, self.together, self.device = model, rollout, together, device
        self.takes, self.ends, self.width = accepted_inputs(model), end_tokens(tokenizer, device), rollout.max_new_tokens
        self.cache_name = "cache" if "cache" in self.takes else "past_key_values"  # since transformers 5.24; before it
        self.stops = StopTexts(rollout.stop, tokenizer, device) if rollout.stop else None
        slots = round_up(longest + self.width, SLOTS[device.type])
        self.reads_runs = reads_runs(model)
        self.bucket = slots if self.reads_runs else SLOTS[device.type]
        self.step_number, self.place = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self.cache, self.weights = SlotCache(model, rows, slots, self.place), weight_addresses(model)
        self.rows, self.slots = rows, slots
        self.held: Runs | SlotMask = (Runs if self.reads_runs else SlotMask)(rows, slots, device)
        self.token, self.position = (torch.zeros(rows, 1, dtype=torch.long, device=device) for _ in range(2))
        self.limits, self.lengths = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(2))
        self.alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(rows, self.width, dtype=torch.long, device=device)
        self.logprobs, self.draws = (torch.zeros(rows, self.width, device=device) for _ in range(2))
        self.seen: Tensor | None = None
        self.graphs: dict[GraphKey, Callable[[], None] | None] = {}
        self.pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @property
    def captures(self) -> bool:
        """Whether steps are captured as graphs."""
        return self.device.type == "cuda" and self.rollout.graphs and not self.together

    def serves(self, rows: int, longest: int, together: bool) -> bool:
        """Whether its tensors and graphs suffice for so many rows after prompts of at most `longest` tokens."""
        return (
            rows <= self.rows
            and longest + self.width <= self.slots
            and together == self.together
            and (not self.graphs or self.weights == weight_addresses(self.model))
        )

    def run(self, prompts: PromptBatch, owners: Tensor, draws: Tensor) -> Part:
        """Tokens and log-probabilities [B, R], lengths [B] and whether each has ended [B]; rows with equal `owners` [B]
        have one prompt. What follows a row's end is not to be used."""
        count, fresh = len(owners), prompts.lengths.new_zeros
        found = fresh(count, self.width), torch.zeros_like(draws), fresh(count), fresh(count, dtype=torch.bool)
        rows, size = torch.arange(count, device=self.device), self.rows_for(count)
        self.begin(prompts, draws, size)
        self.choose(self.prefill(prompts, owners, size), size, self.forbidden(0))
        for step in range(1, self.width):
            if step % self.look_every == 0 or self.together:
                left = self.alive[: len(rows)].nonzero().squeeze(1)
                if not self.anyone(len(left)):
                    break
                if (smaller := self.rows_for(len(left))) < size:
                    self.keep(found, rows)
                    rows, size = self.compact(rows, left, smaller), smaller
            self.play(GraphKey(size, self.slots_for(step), self.forbidden(step)))
        self.keep(found, rows)
        return found

    def begin(self, prompts: PromptBatch, draws: Tensor, size: int) -> None:
        """Fill the tensors for a batch; rows beyond it, up to `size`, have ended already."""
        lengths, count = prompts.lengths, len(prompts.samples)
        self.longest = int(lengths.max())
        self.alive[:size] = torch.arange(size, device=self.device) < count
        self.position.zero_()
        self.draws[:count], self.position[:count] = draws, lengths[:, None]
        self.limits[:count] = 2**31 if prompts.limits is None else prompts.limits
        self.held.begin(lengths, self.longest, size)
        for tensor in (self.tokens, self.logprobs, self.lengths, self.step_number):
            tensor.zero_()
        self.place.fill_(self.longest)

    def rows_for(self, rows: int) -> int:
        """Return the rows of the batch that is decoded for so many: one of few sizes, since each has graphs of its own,
        and a smaller batch costs a copy of the cache."""
        return min(self.rows, next_size(rows))

    def slots_for(self, step: int) -> int:
        """Return the number of slots of the cache that a step reads."""
        return min(self.slots, round_up(self.longest + step, self.bucket))

    @property
    def look_every(self) -> int:
        """Steps between two looks at the rows that are left."""
        return LOOK_EVERY if self.device.type == "cuda" else 1

    def anyone(self, left: int) -> bool:
        """Whether any row is unfinished: on any rank, where ranks go together."""
        return total(left)[0] > 0 if self.together else left > 0

    def forbidden(self, step: int) -> bool:
        """Whether the step may not end a response."""
        return self.rollout.fixed_length or step < self.rollout.min_new_tokens

    def keep(self, found: Part, rows: Tensor) -> None:
        """Copy the results of these rows so far into `found`."""
        here = self.tokens, self.logprobs, self.lengths, ~self.alive
        for column, tensor in zip(found, here, strict=True):
            column[rows] = tensor[: len(rows)]

    def prefill(self, prompts: PromptBatch, owners: Tensor, size: int) -> Tensor:
        """Read each prompt once, those of about one length together; returns the logits [size, V] of the first tokens."""
        distinct, owner = torch.unique_consecutive(owners, return_inverse=True)
        first = torch.searchsorted(owner, torch.arange(len(distinct), device=self.device))
        lengths, logits = prompts.lengths[first], []
        shorter = {"logits_to_keep": 1} if "logits_to_keep" in self.takes else {}
        for part in self.alike(lengths.tolist()):
            width = int(lengths[part].max())
            mask, ids = left_mask(lengths[part], width), prompts.ids[first[part]][:, prompts.ids.size(1) - width :]
            read: Any = DynamicCache()
            cache = {self.cache_name: read, "use_cache": True}
            out = self.model(**model_inputs(self.model, ids, mask), **cache, **shorter)
            logits.append(out.logits[:, -1])
            rows = ((owner >= part.start) & (owner < part.stop)).nonzero().squeeze(1)
            self.cache.store(read, rows, owner[rows] - part.start, self.longest - width)
        whole = torch.cat(logits)[owner]
        if self.rollout.repetition_penalty != 1.0:
            if self.seen is None:
                self.seen = torch.zeros(self.rows, whole.size(1), dtype=torch.bool, device=self.device)
            held = left_mask(prompts.lengths, prompts.ids.size(1))
            self.seen[: len(owner)] = seen_tokens(prompts.ids, held, whole.size(1))
        return torch.cat([whole, whole.new_zeros(size - len(whole), whole.size(1))])

    def alike(self, lengths: list[int]) -> Iterator[slice]:
        """Split prompts into consecutive parts of about one length; a single part where ranks go together."""
        start = 0
        for row in range(1, len(lengths) + 1):
            most = row - start >= max(1, PREFILL_TOKENS // lengths[start])
            if row == len(lengths) or (not self.together and (lengths[row] < ALIKE * lengths[start] or most)):
                yield slice(start, row)
                start = row

    def choose(self, logits: Tensor, size: int, forbid: bool) -> None:
        """Draw the next token of the first `size` rows and make everything ready for the step that reads it."""
        draw = self.draws[:size].index_select(1, self.step_number).squeeze(1)
        seen = None if self.seen is None else self.seen[:size]
        forced = torch.where(self.limits[:size] == self.step_number + 1, self.ends[0], -1)
        tokens, logprobs = next_tokens(logits, draw, self.rollout, self.ends if forbid else None, seen, forced=forced)
        alive, all_tokens = self.alive[:size], self.tokens[:size]
        tokens = torch.where(alive, tokens, 0)
        all_tokens.index_copy_(1, self.step_number, tokens[:, None])
        self.logprobs[:size].index_copy_(1, self.step_number, logprobs[:, None])
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        self.lengths[:size].add_(alive)
        ended = have_ended(tokens, self.ends)
        if self.stops is not None and not forbid:
            ended = ended | self.stops(all_tokens, self.step_number)
        alive.logical_and_(~ended)
        self.token[:size].copy_(tokens[:, None])
        self.step_number.add_(1)

    def step(self, kind: GraphKey) -> None:
        """Read the tokens that were drawn last and draw the next ones."""
        rows, slots = kind.rows, kind.slots
        positions = {"position_ids": self.position[:rows]} if "position_ids" in self.takes else {}
        cache: dict[str, Any] = {self.cache_name: self.cache.shown(rows, slots), "use_cache": True}
        self.held.add(rows, self.place)
        out = self.model(input_ids=self.token[:rows], attention_mask=self.visible(rows, slots), **positions, **cache)
        self.position.add_(1)
        self.place.add_(1)
        self.choose(out.logits[:, -1], rows, kind.forbid)

    def visible(self, rows: int, slots: int) -> Tensor:
        """Return the cached tokens that a step sees, in the form that the model's attention takes."""
        held = self.held.seen(rows, slots)
        return held if self.reads_runs or not takes_packed(self.model) else held[:, None, None]  # [rows, 1, 1, slots]

    def play(self, kind: GraphKey) -> None:
        """Do a step: on a GPU by a captured graph, from the second time on that one of its kind is done."""
        if not self.captures:
            self.step(kind)
        elif kind not in self.graphs:
            self.graphs[kind] = None
            self.warm_up(kind)
        else:
            self.graphs[kind] = replay = self.graphs[kind] or self.captured(kind)
            replay()

    def warm_up(self, kind: GraphKey) -> None:
        """Do a step on a stream of its own: what is allocated once is not to be allocated inside a graph."""
        stream = side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(kind)
        torch.cuda.current_stream().wait_stream(stream)

    def captured(self, kind: GraphKey) -> Callable[[], None]:
        """Capture a step as a graph; returns the function that replays it. Capturing runs nothing."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=side_stream()):
            self.step(kind)
        play: Callable[[], None] = graph.replay
        return play

    def compact(self, rows: Tensor, left: Tensor, smaller: int) -> Tensor:
        """Move the unfinished rows, and finished ones to fill the smaller batch, to the front; returns the rows moved."""
        finished = (~self.alive[: len(rows)]).nonzero().squeeze(1)
        kept = torch.cat([left, finished])[:smaller]
        count = len(kept)
        moved = (
            self.tokens, self.logprobs, self.lengths, self.draws, self.limits, self.token, self.position, self.alive,
            *([] if self.seen is None else [self.seen]),
        )  # fmt: skip
        for tensor in moved:
            tensor[:count] = tensor[kept]
        self.alive[count:smaller] = False
        self.held.move(kept)
        self.cache.move(kept, self.slots_for(int(self.step_number)))
        return rows[kept]


@cache
def side_stream() -> torch.cuda.Stream:
    """Return the stream of all captures and of the steps before them: cuBLAS keeps a workspace for each stream that it
    sees."""
    return torch.cuda.Stream()


def weight_addresses(model: Any) -> tuple[int, ...]:
    """List the addresses of the weights, which graphs read there."""
    return tuple(parameter.data_ptr() for parameter in model.parameters())
