"""Decoding a batch of rows step by step: all that a step reads and writes lies in tensors whose addresses stay, so that on
a GPU one captured graph serves every step of a kind, in this rollout and in those to come.

A step reads its tokens by a model's weights alone (models/step), where its family is known. A process's first step does so
beside transformers' code, and compares.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import left_mask
from rlhf.models.attention import known_padding, reads_runs, takes_packed
from rlhf.models.cached import Runs, SlotMask
from rlhf.models.heads import accepted_inputs, model_inputs
from rlhf.models.lora import base_model
from rlhf.models.step.families import make_reader
from rlhf.models.step.layers import Copies, Reader
from rlhf.models.step.packed import pack_products
from rlhf.planner.cache import SLOTS, next_size, packs_weights, round_up
from rlhf.rollout.base import Part, PromptPart
from rlhf.rollout.hybrid.agreement import agreement_of
from rlhf.rollout.hybrid.cache import SlotCache, Target, prompt_cache
from rlhf.rollout.hybrid.prefill import plan_readings, starts_prompt
from rlhf.rollout.sampling import StopTexts, end_tokens, go_on, next_tokens, seen_tokens
from rlhf.runtime.device import send_numbers
from rlhf.runtime.distributed import total

# Steps between two looks at which rows have finished: on a GPU each waits for all that was launched.
LOOK_EVERY = 8
# Sizes of a shrinking batch on a CPU: moving a row costs a copy of its part of the cache alone.
CPU_SIZES = 16
# The share of a GPU's memory that is to be free before a step is captured.
GRAPH_SHARE = 1 / 16
# Streams of decoders that are no more.
idle_streams: list[torch.cuda.Stream] = []


@dataclass(frozen=True)
class GraphKey:
    """Tells one captured step from another: by its rows, the slots of the cache that it reads, whether it may not end a
    response, and whether some rows must end at a length of their own."""

    rows: int
    slots: int
    forbid: bool
    limited: bool


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
        # Counts steps: their number, the slot of the next token, and the position of each row's.
        self.clock = torch.zeros(rows + 2, dtype=torch.long, device=device)
        self.step_number, self.place, self.position = self.clock[:1], self.clock[1:2], self.clock[2:]
        self.cache, self.weights = SlotCache(model, rows, slots, self.place), weight_addresses(model)
        self.rows, self.slots, self.count = rows, slots, rows
        dtype = next(model.parameters()).dtype
        self.held: Runs | SlotMask = (Runs if self.reads_runs else SlotMask)(rows, slots, device, dtype)
        self.token, self.limits, self.lengths = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(3))
        self.alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(rows, self.width, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, self.width, device=device)
        self.draws = torch.zeros(rows, self.width, dtype=torch.float64, device=device)
        self.copies = Copies(base_model(model))
        self.reader: Reader | None = None
        self.agreement, self.limited = agreement_of(model), False
        self.seen: Tensor | None = None
        self.graphs: dict[GraphKey, Callable[[], None] | None] = {}
        self.pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.stream = lend_stream(self) if device.type == "cuda" else None

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

    def run(self, part: PromptPart, owners: list[int]) -> Part:
        """Tokens and log-probabilities [B, R], lengths [B] and whether each has ended [B]; rows with equal `owners` (B)
        have one prompt. What follows a row's end is not to be used."""
        count, fresh = len(owners), part.prompts.lengths.new_zeros
        found = fresh(count, self.width), torch.zeros_like(part.draws), fresh(count), fresh(count, dtype=torch.bool)
        self.count = count
        rows, size = torch.arange(count, device=self.device), self.rows_for(count)
        self.begin(part, size)
        self.choose(self.prefill(part, owners, size), self.kind(0, size))
        for step in range(1, self.width):
            if (step % self.look_every == 0 and self.can_end) or self.together:
                alive = self.alive[: len(rows)].tolist()  # a GPU is waited for here alone
                if not self.anyone(sum(alive)):
                    break
                if (smaller := self.rows_for(sum(alive))) < size:
                    self.keep(found, rows)
                    rows, size = self.compact(rows, alive, smaller, step), smaller
            self.play(self.kind(step, size))
        self.keep(found, rows)
        self.reader = None  # and the weights that were packed for it
        return found

    def kind(self, step: int, size: int) -> GraphKey:
        """Return the kind of a step of `size` rows."""
        return GraphKey(size, self.slots_for(step), self.forbidden(step), self.limited)

    @property
    def can_end(self) -> bool:
        """Whether any row may end before the last step."""
        return self.limited or not self.rollout.fixed_length

    def begin(self, part: PromptPart, size: int) -> None:
        """Fill the tensors for a batch; rows beyond it, up to `size`, have ended already."""
        lengths, limits, count = part.prompts.lengths, part.prompts.limits, len(part.rows)
        self.longest, self.limited = max(part.lengths), limits is not None
        wanted = not self.together and self.agreement.may_read
        self.reader = self.make_reader(size) if wanted else None
        self.alive[:size] = torch.arange(size, device=self.device) < count
        self.clock.fill_(-1)  # each step begins where the one before ends: drawing a token counts
        self.draws[:count], self.position[:count] = part.draws, lengths - 1
        self.limits[:count] = 2**31 if limits is None else limits
        self.held.begin(lengths, self.longest, size)
        for tensor in (self.tokens, self.logprobs, self.lengths, self.step_number):
            tensor.zero_()
        self.place.fill_(self.longest - 1)

    def make_reader(self, size: int) -> Reader | None:
        """Return what reads a token of each of `size` rows, with the weights as they are now; None: transformers' code."""
        reader, weights = make_reader(self.model, self.slots, self.copies), list(self.model.parameters())
        parameters, is_fp32 = sum(weight.numel() for weight in weights), weights[0].dtype == torch.float32
        packs = packs_weights(self.rollout, self.device.type, is_fp32, parameters, size)
        return pack_products(reader) if reader is not None and packs else reader

    def rows_for(self, rows: int) -> int:
        """Return the rows of the batch that is decoded for so many: on a GPU one of few sizes, since each has graphs of its
        own; on a CPU one of sixteen up to the batch's own, whatever batches there were before, so that it rounds alike."""
        if self.device.type == "cuda":
            return min(self.rows, next_size(rows))
        return min(self.count, round_up(max(1, rows), max(1, self.count // CPU_SIZES)))

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

    def prefill(self, part: PromptPart, owners: list[int], size: int) -> Tensor:
        """Read each prompt once, those of about one length together, into the cache; returns the logits [size, V] of the
        first tokens."""
        ids, lengths, source, logits = part.prompts.ids, part.prompts.lengths, None, []
        first, readings = plan_readings(part.lengths, owners, self.together)
        if len(first) < len(owners):  # copies of prompts
            number = [row - 1 for row in accumulate(map(int, starts_prompt(owners)))]
            chosen, source = send_numbers([*first, *number], self.device).split([len(first), len(owners)])
            ids, lengths = ids[chosen], lengths[chosen]
        for read in readings:
            mask = left_mask(lengths[read.prompts], read.width)
            inputs = model_inputs(self.model, ids[read.prompts, ids.size(1) - read.width :], mask)
            own = None if source is None else source[read.rows] - read.prompts.start
            target = Target(read.rows, self.longest - read.width, own)
            cache = {self.cache_name: prompt_cache(self.cache, target), "use_cache": True}
            # The last column by its index: of a slice, torch computes the product row by row on a CPU, 9 times as slowly.
            last = torch.full((1,), read.width - 1, device=self.device)
            shorter = {"logits_to_keep": last} if "logits_to_keep" in self.takes else {}
            with known_padding(read.is_padded):
                logits.append(self.model(**inputs, **cache, **shorter).logits[:, -1])
        whole = torch.cat(logits) if source is None else torch.cat(logits)[source]
        if self.rollout.repetition_penalty != 1.0:
            if self.seen is None:
                self.seen = torch.zeros(self.rows, whole.size(1), dtype=torch.bool, device=self.device)
            held = left_mask(part.prompts.lengths, part.prompts.ids.size(1))
            self.seen[: len(owners)] = seen_tokens(part.prompts.ids, held, whole.size(1))
        return torch.cat([whole, whole.new_zeros(size - len(whole), whole.size(1))])

    def choose(self, logits: Tensor, kind: GraphKey) -> None:
        """Draw the next token of the first rows and make everything ready for the step that reads it."""
        size, forbid = kind.rows, kind.forbid
        draw = self.draws[:size].index_select(1, self.step_number).squeeze(1)
        seen = None if self.seen is None else self.seen[:size]
        forced = torch.where(self.limits[:size] == self.step_number + 1, self.ends[0], -1) if kind.limited else None
        tokens, logprobs = next_tokens(logits, draw, self.rollout, self.ends if forbid else None, seen, forced=forced)
        alive, all_tokens = self.alive[:size], self.tokens[:size]
        all_tokens.index_copy_(1, self.step_number, tokens[:, None])
        self.logprobs[:size].index_copy_(1, self.step_number, logprobs[:, None])
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        self.lengths[:size].add_(alive)
        if kind.limited or not forbid:
            alive.logical_and_(go_on(tokens, self.ends))
        if self.stops is not None and not forbid:
            alive.logical_and_(~self.stops(all_tokens, self.step_number))
        self.token[:size].copy_(tokens)
        self.clock.add_(1)

    def step(self, kind: GraphKey) -> None:
        """Read the tokens that were drawn last and draw the next ones."""
        self.held.add(kind.rows, self.place)
        self.choose(self.read(kind), kind)

    def read(self, kind: GraphKey) -> Tensor:
        """Return the logits [rows, V] after the tokens that were drawn last: by the model's weights, or by transformers'
        code. The first time by both; where they disagree, transformers' code serves from then on."""
        if self.reader is None:
            return self.read_plainly(kind)
        if self.agreement.is_known:
            return self.read_weights(self.reader, kind)
        expected = self.read_plainly(kind)
        logits = self.read_weights(self.reader, kind)
        if self.agreement.confirm(logits, expected):
            return logits
        self.reader = None
        return expected

    def read_weights(self, reader: Reader, kind: GraphKey) -> Tensor:
        """Return the logits [rows, V] after the tokens that were drawn last, by the model's weights."""
        rows, slots = kind.rows, kind.slots
        masks = {window: self.held.within(window, rows, slots, self.place) for window in reader.windows}
        cached = self.cache.shown(rows, slots).layers_seen
        return reader(self.token[:rows], self.position[:rows], cached, self.place, masks)

    def read_plainly(self, kind: GraphKey) -> Tensor:
        """Return the logits [rows, V] after the tokens that were drawn last, by transformers' code."""
        rows, slots = kind.rows, kind.slots
        positions = {"position_ids": self.position[:rows, None]} if "position_ids" in self.takes else {}
        cache: dict[str, Any] = {self.cache_name: self.cache.shown(rows, slots), "use_cache": True}
        mask = self.visible(rows, slots)
        out = self.model(input_ids=self.token[:rows, None], attention_mask=mask, **positions, **cache)
        logits: Tensor = out.logits[:, -1]
        return logits

    def visible(self, rows: int, slots: int) -> Tensor:
        """Return the cached tokens that a step sees, in the form that transformers' code takes."""
        held = self.held.seen(rows, slots)
        if self.reads_runs:
            return held
        seen = held == 0  # [rows, 1, 1, slots]
        return seen if takes_packed(self.model) else seen[:, 0, 0]

    def play(self, kind: GraphKey) -> None:
        """Do a step: on a GPU by a captured graph, from the second time on that one of its kind is done."""
        if not self.captures:
            self.step(kind)
        elif kind not in self.graphs:
            self.graphs[kind] = None
            self.warm_up(kind)
        else:
            self.graphs[kind] = replay = self.graphs[kind] or self.capture(kind)
            replay()

    def warm_up(self, kind: GraphKey) -> None:
        """Do a step on a stream of its own: what is allocated once is not to be allocated inside a graph."""
        assert self.stream is not None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.step(kind)
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, kind: GraphKey) -> Callable[[], None]:
        """Capture a step as a graph; returns the function that replays it. Capturing runs nothing."""
        graph = torch.cuda.CUDAGraph()
        make_room_for_graph(self.device)
        try:
            with torch.cuda.stream(self.stream):
                # Other threads, as NCCL's, may use the GPU meanwhile.
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    self.step(kind)
                finally:
                    graph.capture_end()
        except BaseException:
            self.graphs.clear()  # they share a stream with this one, which goes
            raise
        play: Callable[[], None] = graph.replay
        return play

    def compact(self, rows: Tensor, alive: list[bool], smaller: int, step: int) -> Tensor:
        """Move unfinished rows beyond the smaller batch to the places of finished ones in it; returns the batch's rows."""
        moved = [row for row in range(smaller, len(alive)) if alive[row]]
        ended = [row for row in range(smaller) if not alive[row]][: len(moved)]
        if moved:
            source, target = send_numbers([*moved, *ended], self.device).split(len(moved))
            tensors = (
                self.tokens, self.logprobs, self.lengths, self.draws, self.limits, self.token, self.position, self.alive,
                rows, *([] if self.seen is None else [self.seen]),
            )  # fmt: skip
            for tensor in tensors:
                tensor[target] = tensor[source]
            self.held.move(source, target)
            self.cache.move(source, target, self.slots_for(step))
        return rows[:smaller]


def make_room_for_graph(device: torch.device) -> None:
    """Return unused memory to the GPU where little is free. What torch keeps for other tensors a capture cannot take, and
    returning it before each capture, as torch.cuda.graph does, costs the next steps their allocations."""
    free, whole = torch.cuda.mem_get_info(device)
    if free < whole * GRAPH_SHARE:
        torch.cuda.empty_cache()


def lend_stream(decoder: Decoder) -> torch.cuda.Stream:
    """Return the stream of a decoder's captures and of the steps before them, which no other living decoder has. cuBLAS
    keeps a workspace for each stream that it sees, so that streams are used again; and torch 2.12 and 2.13 free the
    workspace of a stream with any graph that was captured on it, while others may still use it
    (github.com/pytorch/pytorch/issues/193402)."""
    stream = idle_streams.pop() if idle_streams else torch.cuda.Stream()
    weakref.finalize(decoder, idle_streams.append, stream)
    return stream


def weight_addresses(model: Any) -> tuple[int, ...]:
    """List the addresses of the weights, which graphs read there."""
    return tuple(parameter.data_ptr() for parameter in model.parameters())
