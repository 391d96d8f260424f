"""Sampling by transformers' continuous batching: a paged key-value cache, requests that join and leave a running batch."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig

from rlhf.catalog.sampler import paged_problem
from rlhf.config.schema import Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch, left_mask
from rlhf.models.attention import attention
from rlhf.models.families import shape_of
from rlhf.models.lora import base_model
from rlhf.planner.cache import PAGE
from rlhf.rollout.base import Part, PromptPart, Responses, check_room, evaluation_mode, generate_in_parts
from rlhf.rollout.sampling import StopTexts, end_tokens, have_ended, next_tokens, seen_tokens
from rlhf.rollout.weights import RolloutWeights
from rlhf.runtime.compat.continuous_batching import (
    RequestProcessor,
    failure_of,
    managed_attention,
    use_processor,
)

# Tokens of a forward pass, at most.
PASS_TOKENS = 2**13


class PagedSampler:
    """Samples by transformers' continuous batching. At ZeRO stage 3 the whole model is gathered: managers go at their own
    pace, so that ranks could not gather layers together."""

    problem = staticmethod(paged_problem)

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout) -> None:
        self.engine, self.tokenizer, self.rollout = engine, tokenizer, rollout
        self.weights = RolloutWeights(engine, replace(rollout, gather="all"))

    def sync(self) -> None:
        """Gather the weights of a sharded model."""
        self.weights.sync()

    def release(self) -> None:
        """Free the gathered weights."""
        self.weights.release()

    def generate(self, prompts: PromptBatch, draws: Tensor) -> Responses:
        """Answer prompts by the draws [B, max_new_tokens], part by part."""
        model = base_model(self.engine.module)
        with evaluation_mode(self.engine), self.weights.in_place(), managed_attention(model, attention):

            def sample(part: PromptPart) -> Part:
                chooser = PresampledLogitsProcessor(part.prompts, part.draws, self.tokenizer, self.rollout)
                answer(model, chooser, self.rollout)
                count = len(part.rows)
                return chooser.tokens[:count], chooser.logprobs[:count], chooser.lengths[:count], chooser.ended[:count]

            return generate_in_parts(prompts, draws, self.rollout, sample)


class PresampledLogitsProcessor(RequestProcessor):
    """Chooses the next token of each request itself, by its row and step, and leaves the manager, which decodes greedily,
    no other. A response that a stop text or a limit ends it shows the manager as ended by end-of-text."""

    def __init__(self, prompts: PromptBatch, draws: Tensor, tokenizer: Tokenizer, rollout: Rollout) -> None:
        super().__init__()
        self.rollout, self.ends, self.prompts = rollout, end_tokens(tokenizer, draws.device), prompts
        rows, self.width = draws.shape
        self.begins: list[int] = prompts.lengths.tolist()
        self.nothing = rows * self.width  # what padding is asked for: a row that no response has
        self.draws = torch.cat([draws, draws.new_zeros(1, self.width)])
        self.limits = torch.full((rows + 1,), 2**31, device=draws.device)
        if prompts.limits is not None:
            self.limits[:rows] = prompts.limits
        self.stops = StopTexts(rollout.stop, tokenizer, draws.device) if rollout.stop else None
        self.tokens, self.logprobs = torch.zeros_like(self.draws, dtype=torch.long), torch.zeros_like(self.draws)
        self.lengths = torch.zeros(rows + 1, dtype=torch.long, device=draws.device)
        self.ended = torch.zeros(rows + 1, dtype=torch.bool, device=draws.device)
        self.seen: Tensor | None = None

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Fill in defaults where there is no request."""
        int32_tensor.fill_(self.nothing)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        """Row and step of each request, as one number."""
        states = [request.state for request in requests_with_new_token]
        return torch.tensor([self.place(state) for state in states], dtype=torch.int32)

    def place(self, state: Any) -> int:
        """Row and step of a request; one that the cache had no room for begins anew with what it had as a prompt."""
        if not state.request_id.isdecimal():  # it warms up
            return self.nothing
        row = int(state.request_id)
        return row * self.width + len(state.initial_tokens) + len(state.generated_tokens) - self.begins[row]

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """[N, V] with one token left in each row."""
        asked = tensor_arg[: scores.size(0)].long()
        rows, steps = asked // self.width, asked % self.width
        if self.rollout.repetition_penalty != 1.0 and self.seen is None:
            mask = left_mask(self.prompts.lengths, self.prompts.ids.size(1))
            known = seen_tokens(self.prompts.ids, mask, scores.size(-1))
            self.seen = torch.cat([known, torch.zeros_like(known[:1])])
        forbidden = (steps < self.rollout.min_new_tokens) | self.rollout.fixed_length
        seen = None if self.seen is None else self.seen[rows]
        draws, forced = self.draws[rows, steps], torch.where(self.limits[rows] == steps + 1, self.ends[0], -1)
        tokens, logprobs = next_tokens(scores, draws, self.rollout, self.ends, seen, forbidden, forced)
        self.tokens[rows, steps], self.logprobs[rows, steps], self.lengths[rows] = tokens, logprobs, steps + 1
        if self.seen is not None:
            self.seen[rows, tokens] = True
        ended = have_ended(tokens, self.ends)
        if self.stops is not None:
            ended = ended | (self.stops(self.tokens[rows], steps) & ~forbidden)
        self.ended[rows] = ended
        shown = torch.where(ended, self.ends[0], tokens)
        return torch.full_like(scores, -torch.inf).scatter(-1, shown[:, None], 0.0)


def answer(model: Any, chooser: PresampledLogitsProcessor, rollout: Rollout) -> None:
    """Have a manager answer the chooser's prompts. What stops its thread is raised here; RuntimeError, with its reason,
    where a request alone fails."""
    ids, lengths = chooser.prompts.ids, chooser.begins
    prompts = [row[ids.size(1) - length :] for row, length in zip(ids.tolist(), lengths, strict=True)]
    pages = sum(-(-(length + rollout.max_new_tokens) // PAGE) for length in lengths)
    check_room(len(prompts), pages * PAGE // len(prompts), bytes_per_token(model), ids.device)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            max_new_tokens=rollout.max_new_tokens, do_sample=False, eos_token_id=int(chooser.ends[0]), pad_token_id=0
        ),
        continuous_batching_config=settings(len(prompts), pages, sum(lengths), rollout),
    )
    use_processor(manager, chooser)
    manager.start()
    try:
        for row, prompt in enumerate(prompts):
            manager.add_request(prompt, request_id=str(row), max_new_tokens=rollout.max_new_tokens)
        left, problem = len(prompts), ""
        while left and not problem:
            result = manager.get_result(timeout=1)
            if result is not None and result.error is not None:
                problem = result.error or "no reason given"
            elif result is None and not manager.is_running():
                problem = "it stopped before all responses were there"
            left -= result is not None and result.is_finished()
    finally:
        manager.stop(block=True, hard_stop=True)
        manager.destroy()
    if problem:
        raise failure_of(manager) or RuntimeError(f"continuous batching failed: {problem}")


def settings(rows: int, pages: int, tokens: int, rollout: Rollout) -> ContinuousBatchingConfig:
    """Return the manager's settings for so many rows with prompts of so many tokens in all: a cache of the pages that they
    need, and nothing that the device might have beside it."""
    wanted: dict[str, Any] = {
        "num_blocks": pages + 1,
        "max_batch_tokens": min(PASS_TOKENS, max(tokens, rows)),
        "max_requests_per_batch": rows,
        "use_async_batching": False,  # a step is known by the tokens that there are
        "use_cuda_graph": None if rollout.graphs else False,
        "disable_nccl_graph_mixing": False,
        "auto_switch_to_flash": False,  # since transformers 5.18
    }
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    return ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in known})


def bytes_per_token(model: Any) -> int:
    """Return what one token takes in the cache: a key and a value of every head of every layer."""
    shape = shape_of(model.config)
    return int(2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"] * model.dtype.itemsize)
