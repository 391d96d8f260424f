"""The samples of a rollout, for the updates: B responses of at most R tokens after prompts of at most Q tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rlhf.data.tokens import PromptBatch, left_mask, right_mask
from rlhf.rollout.base import Responses
from rlhf.runtime.distributed import gather


@dataclass(frozen=True)
class ScoredSamples:
    """Left-padded prompts and right-padded responses, and what the models say of them.

    `prompts` [B, Q] and `prompt_mask`; `responses` [B, R] and `mask`, 1 on every action (token of a response), end-of-text
    included; `ended` [B], 1 where the response reached end-of-text; `logprobs` of the policy that sampled,
    `sampler_logprobs` as its sampler gave them, `reference_logprobs` and `values`, all [B, R] in float32; `scores` [B], the
    sum of the rewards; `is_scored` [B], 1 where any applies; `greedy_scores` [B] of the likeliest response to the same
    prompt, after shaping; `token_scores` [B, R], the part of the scores that falls on spans, at the tokens that end them,
    where rewards read texts; and `group_scores` [B], the sum of the rewards as each compares within its group
    (`ppo.group_of=each`). What the algorithm does without is None.
    """

    prompts: Tensor
    prompt_mask: Tensor
    responses: Tensor
    mask: Tensor
    ended: Tensor
    logprobs: Tensor
    sampler_logprobs: Tensor
    scores: Tensor
    is_scored: Tensor
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    greedy_scores: Tensor | None = None
    token_scores: Tensor | None = None
    group_scores: Tensor | None = None


@dataclass(frozen=True)
class Experience:
    """Left-padded prompts and right-padded responses, and what was found at each action (token of a response).

    `prompts` [B, Q] and `prompt_mask`; `responses` [B, R] and `mask`, 1 on every action, end-of-text included;
    `loss_mask`, 1 on the actions that are trained; `logprobs` of the policy that sampled, `rewards`, `advantages`, and,
    where there are a reference and a critic, `reference_logprobs`, `values` and `returns`, all [B, R] in float32;
    `scores` [B], the reward model's.
    """

    prompts: Tensor
    prompt_mask: Tensor
    responses: Tensor
    mask: Tensor
    loss_mask: Tensor
    logprobs: Tensor
    rewards: Tensor
    advantages: Tensor
    scores: Tensor
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    returns: Tensor | None = None

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Return prompts and responses in one row each, and their mask, both [B, Q + R]."""
        ids = torch.cat([self.prompts, self.responses], dim=1)
        return ids, torch.cat([self.prompt_mask, self.mask], dim=1)

    def lengths(self) -> list[tuple[int, int]]:
        """Return how many tokens prompt and response of each sample have."""
        prompts, responses = torch.stack([self.prompt_mask.sum(1), self.mask.sum(1)]).tolist()
        return list(zip(prompts, responses, strict=True))

    def rows(self, indices: Tensor, lengths: Sequence[tuple[int, int]] | None = None) -> "Experience":
        """Select samples. With their `lengths`, columns that are padding in all of them are cut off."""
        part = {name: tensor[indices] for name, tensor in columns_of(self).items()}
        if lengths is None:
            return Experience(**part)
        longest_prompt, longest_response = (max(column) for column in zip(*lengths, strict=True))
        left, right = part["prompts"].size(1) - longest_prompt, max(1, longest_response)
        for name, tensor in part.items():
            if tensor.ndim == 2:
                part[name] = tensor[:, left:] if name.startswith("prompt") else tensor[:, :right]
        return Experience(**part)


Samples = TypeVar("Samples", ScoredSamples, Experience)


def columns_of(samples: ScoredSamples | Experience) -> dict[str, Tensor]:
    """Return the columns that there are, by name."""
    found = {field.name: getattr(samples, field.name) for field in fields(samples)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def from_all_ranks(samples: Samples) -> Samples:
    """Gather the samples of all ranks, in order, on every rank, so that mini-batches do not depend on the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return samples
    widths = torch.tensor([samples.prompts.size(1), samples.responses.size(1)], device=samples.prompts.device)
    dist.all_reduce(widths, op=dist.ReduceOp.MAX)
    gathered = {name: gather_column(pad_column(t, name, widths.tolist())) for name, t in columns_of(samples).items()}
    return type(samples)(**gathered)


def concatenate(parts: list[Samples]) -> Samples:
    """Put samples one after another, padded to a common width."""
    widths = [max(part.prompts.size(1) for part in parts), max(part.responses.size(1) for part in parts)]
    padded = [{name: pad_column(t, name, widths) for name, t in columns_of(part).items()} for part in parts]
    return type(parts[0])(**{name: torch.cat([part[name] for part in padded]) for name in padded[0]})


def select(samples: Samples, choose: Callable[[Tensor], Tensor]) -> Samples:
    """Choose rows of every column."""
    return type(samples)(**{name: choose(tensor) for name, tensor in columns_of(samples).items()})


def pad_column(tensor: Tensor, name: str, widths: list[int]) -> Tensor:
    """Pad a column to the widths of prompts and of responses, on the side of its padding."""
    if tensor.ndim != 2:
        return tensor
    prompt = name.startswith("prompt")
    missing = widths[0 if prompt else 1] - tensor.size(1)
    return F.pad(tensor, (missing, 0) if prompt else (0, missing))


def gather_column(tensor: Tensor) -> Tensor:
    """Concatenate a column of all ranks."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def tensors_of(prefix: str, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names, on a device."""
    return {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}


def sequences_of(prompts: PromptBatch, responses: Responses) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return prompts and responses in one row each and their mask, [B, T], and the masks of prompts [B, Q] and of responses
    [B, R]."""
    prompt_mask = left_mask(prompts.lengths, prompts.ids.size(1))
    mask = right_mask(responses.lengths, responses.tokens.size(1))
    ids = torch.cat([prompts.ids, responses.tokens], dim=1)
    return ids, torch.cat([prompt_mask, mask], dim=1), prompt_mask, mask


def responses_of(samples: ScoredSamples) -> Responses:
    """Return the responses as their sampler gave them."""
    return Responses(samples.responses, samples.mask.sum(1), samples.ended.bool(), samples.sampler_logprobs)


def first_nonfinite(experience: Experience) -> str | None:
    """Find the first number that is not finite in a rollout, on any rank; None if all are finite."""
    columns = (
        ("a log-probability", experience.logprobs),
        ("a reference log-probability", experience.reference_logprobs),
        ("a value", experience.values),
        ("a score", experience.scores),
    )
    found = [name for name, column in columns if column is not None and not bool(torch.isfinite(column).all())]
    return next((names[0] for names in gather(found) if names), None)
