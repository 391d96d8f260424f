"""Rollouts on the weights that are trained, by a decode loop of our own: a static key-value cache, sampling on the device
with no word to the host, finished rows left out, and on a GPU one captured graph that serves every step."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticLayer

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer, left_mask, right_mask
from rlhf.engine.distributed import total
from rlhf.models.heads import accepted_inputs, model_inputs
from rlhf.models.lora import base_model
from rlhf.rollout.base import Responses
from rlhf.rollout.sampling import next_tokens
from rlhf.rollout.weights import ready

# Steps between two looks at which rows have finished: on a GPU each waits for all that was launched.
LOOK_EVERY = 8
# A prefill's rows have prompts of about one length (this share of the longest) and so many tokens at most.
ALIKE, PREFILL_TOKENS = 0.75, 2**14


@torch.no_grad()
def generate(engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout) -> Responses:
    """Answer the prompts, the longest first, `rollout.micro_batch_size` at a time."""
    count, width = len(prompts.samples), rollout.max_new_tokens
    device = prompts.ids.device
    tokens = torch.zeros(count, width, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, width, device=device)
    order = torch.argsort(prompts.lengths, descending=True, stable=True)
    draws = torch.from_numpy(uniforms).to(device)
    size = rollout.micro_batch_size or count
    with ready(engine, rollout) as together:
        for start in range(0, count, size):
            rows = order[start : start + size]
            batch = Batch(engine.module, chosen(prompts, rows), draws[rows], tokenizer, rollout, together)
            tokens[rows], logprobs[rows] = batch.run()
    ends = tokens == int(tokenizer.eos_token_id)  # which fixed_length never draws
    ended = ends.any(dim=1)
    lengths = torch.where(ended, ends.long().argmax(dim=1) + 1, width)
    longest = int(lengths.max())
    mask = right_mask(lengths, longest)
    return Responses(tokens[:, :longest] * mask, lengths, ended, logprobs[:, :longest] * mask)


class Batch:
    """Rows that are decoded together. All that a step reads and writes lies in tensors whose addresses stay, those of the
    `size` rows that are left in their first rows; so a graph of the step can be played again and again."""

    def __init__(
        self, model: Any, prompts: PromptBatch, draws: Tensor, tokenizer: Tokenizer, rollout: Rollout, together: bool
    ) -> None:
        self.model, self.rollout, self.together, self.takes = model, rollout, together, accepted_inputs(model)
        lengths, device = prompts.lengths, prompts.ids.device
        self.eos, count, self.width = int(tokenizer.eos_token_id), len(lengths), rollout.max_new_tokens
        self.prompt = longest = int(lengths.max())
        self.ids, self.lengths, self.draws = prompts.ids[:, prompts.ids.size(1) - longest :], lengths, draws
        self.limits = torch.full_like(lengths, 2**31) if prompts.limits is None else prompts.limits.clone()
        slots = longest + self.width
        layers = base_model(model).config.get_text_config().num_hidden_layers
        self.cache: Any = Cache(layers=[StaticLayer(max_cache_len=slots) for _ in range(layers)])
        places = torch.arange(slots, device=device)
        self.mask = ((places >= longest - lengths[:, None]) & (places < longest)).long()
        self.token = torch.zeros(count, 1, dtype=torch.long, device=device)
        self.position = lengths[:, None].clone()
        self.alive = torch.ones(count, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(count, self.width, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(count, self.width, device=device)
        self.step_number = torch.zeros(1, dtype=torch.long, device=device)
        self.graphs: dict[tuple[int, bool], Any] = {}

    def run(self) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities [B, R] of all rows; what follows a row's end is not to be used."""
        count = self.tokens.size(0)
        found = torch.zeros_like(self.tokens), torch.zeros_like(self.logprobs)
        rows = torch.arange(count, device=self.tokens.device)
        self.choose(self.prefill(), count, self.forbidden(0))
        for step in range(1, self.width):
            if step % self.look_every() == 0 or self.together:
                left = self.alive[: len(rows)].nonzero().squeeze(1)
                if not self.anyone(len(left)):
                    break
                smaller = bucket(len(left), count, self.token.device.type == "cuda")
                if smaller < len(rows):
                    self.keep(found, rows)
                    rows = self.compact(rows, left, smaller)
            self.play(len(rows), self.forbidden(step))
        self.keep(found, rows)
        return found

    def look_every(self) -> int:
        """Steps between two looks at the rows that are left."""
        return LOOK_EVERY if self.token.device.type == "cuda" else 1

    def anyone(self, left: int) -> bool:
        """Whether any row is left, on any rank where ranks go together."""
        return total(left)[0] > 0 if self.together else left > 0

    def forbidden(self, step: int) -> bool:
        """Whether the step may not end a response."""
        return self.rollout.fixed_length or step < self.rollout.min_new_tokens

    def keep(self, found: tuple[Tensor, Tensor], rows: Tensor) -> None:
        """Put what the rows have so far where it belongs."""
        found[0][rows], found[1][rows] = self.tokens[: len(rows)], self.logprobs[: len(rows)]

    def prefill(self) -> Tensor:
        """Read the prompts, those of about one length together; returns the logits [B, V] of the first tokens."""
        logits = []
        for rows in self.alike():
            width = int(self.lengths[rows].max())
            mask = left_mask(self.lengths[rows], width)
            read_in: Any = DynamicCache()
            inputs = model_inputs(self.model, self.ids[rows, self.prompt - width :], mask)
            shorter = {"logits_to_keep": 1} if "logits_to_keep" in self.takes else {}
            out = self.model(**inputs, past_key_values=read_in, use_cache=True, **shorter)
            logits.append(out.logits[:, -1])
            for layer, read in zip(self.cache.layers, read_in.layers, strict=True):
                if not layer.is_initialized:
                    count = self.ids.size(0)
                    empty = (value.new_empty(count, value.size(1), 0, value.size(3)) for value in (read.keys, read.values))
                    layer.lazy_initialization(*empty)
                layer.keys[rows, :, self.prompt - width : self.prompt] = read.keys
                layer.values[rows, :, self.prompt - width : self.prompt] = read.values
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.prompt)
        return torch.cat(logits)

    def alike(self) -> Iterator[slice]:
        """Consecutive rows whose prompts are of about one length; all of them where ranks go together."""
        lengths, start = self.lengths.tolist(), 0
        for row in range(1, len(lengths) + 1):
            most = row - start >= max(1, PREFILL_TOKENS // lengths[start])
            if row == len(lengths) or (not self.together and (lengths[row] < ALIKE * lengths[start] or most)):
                yield slice(start, row)
                start = row

    def choose(self, logits: Tensor, size: int, forbid: bool) -> None:
        """Draw the next token of the first `size` rows and make everything ready for the step that reads it."""
        draw = self.draws[:size].index_select(1, self.step_number).squeeze(1)
        tokens, logprobs = next_tokens(logits, draw, self.rollout, self.eos if forbid else None)
        alive = self.alive[:size]
        tokens = torch.where(self.limits[:size] == self.step_number + 1, self.eos, tokens)
        tokens = torch.where(alive, tokens, 0)
        self.tokens[:size].index_copy_(1, self.step_number, tokens[:, None])
        self.logprobs[:size].index_copy_(1, self.step_number, logprobs[:, None])
        alive.logical_and_(tokens != self.eos)
        self.token[:size].copy_(tokens[:, None])
        self.mask[:size].index_fill_(1, self.step_number + self.prompt, 1)
        self.step_number.add_(1)

    def step(self, size: int, forbid: bool) -> None:
        """Read the tokens that were drawn last and draw the next ones."""
        positions = {"position_ids": self.position[:size]} if "position_ids" in self.takes else {}
        out = self.model(
            input_ids=self.token[:size], attention_mask=self.mask[:size], past_key_values=self.cache, use_cache=True,
            **positions,
        )  # fmt: skip
        self.position.add_(1)
        self.choose(out.logits[:, -1], size, forbid)

    def play(self, size: int, forbid: bool) -> None:
        """Do a step: on a GPU by a captured graph, from the second time on that one of its kind is done."""
        if self.token.device.type != "cuda" or self.together or not self.rollout.graphs:
            self.step(size, forbid)
            return
        key = size, forbid
        if key not in self.graphs:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # what is allocated once is not to be allocated inside the graph
                self.step(size, forbid)
            torch.cuda.current_stream().wait_stream(stream)
            self.graphs[key] = None
            return
        if self.graphs[key] is None:
            self.graphs[key] = graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step(size, forbid)
        self.graphs[key].replay()

    def compact(self, rows: Tensor, left: Tensor, smaller: int) -> Tensor:
        """Move the rows that are left, and finished ones to fill the smaller batch, to the front; which they are."""
        finished = (~self.alive[: len(rows)]).nonzero().squeeze(1)
        kept = torch.cat([left, finished])[:smaller]
        moved = self.tokens, self.logprobs, self.draws, self.limits, self.token, self.position, self.mask, self.alive
        for tensor in moved:
            tensor[:smaller] = tensor[kept]
        for layer in self.cache.layers:
            layer.keys[:smaller], layer.values[:smaller] = layer.keys[kept], layer.values[kept]
            layer.keys, layer.values = layer.keys[:smaller], layer.values[:smaller]
        return rows[kept]


def chosen(prompts: PromptBatch, rows: Tensor) -> PromptBatch:
    """Some of the prompts."""
    limits = None if prompts.limits is None else prompts.limits[rows]
    return PromptBatch(prompts.ids[rows], prompts.lengths[rows], [prompts.samples[row] for row in rows.tolist()], limits)


def bucket(rows: int, count: int, on_gpu: bool) -> int:
    """The smallest batch of those that are used, for so many rows of `count`: halves on a GPU, where each has a graph of
    its own, else three quarters."""
    size = count
    while size > 1 and (smaller := size // 2 if on_gpu else size - max(1, size // 4)) >= max(1, rows):
        size = smaller
    return size
