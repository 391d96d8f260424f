"""Rollouts of a model that no device holds whole: groups of ranks share its layers and answer their prompts together."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from rlhf.config.schema import Rollout
from rlhf.data.tokens import PromptBatch, Tokenizer
from rlhf.engine.tensor_parallel import Share, SharedModel
from rlhf.rollout.base import Generate, Responses
from rlhf.rollout.weights import adapter_scale, announce
from rlhf.runtime.distributed import rank, world

# The shared copies of the models that were sampled from, for the next rollouts.
SHARED: WeakKeyDictionary[nn.Module, SharedModel] = WeakKeyDictionary()


@dataclass(frozen=True)
class SharedEngine:
    """What a rollout wants of an engine, around a model whose layers are shared among ranks."""

    module: Any
    device: torch.device

    def zero_optimization_stage(self) -> int:
        """Its weights are not gathered: they are where they are used."""
        return 0


def generate(
    engine: Any, prompts: PromptBatch, uniforms: np.ndarray, tokenizer: Tokenizer, rollout: Rollout, sample: Generate
) -> Responses:
    """Answer the prompts of all ranks of the group on each of them, by `sample`; returns this rank's own."""
    share, module = share_of(rollout.tensor_parallel), engine.module
    announce(f"rollouts share each layer among {share.count} ranks")
    known = SHARED.pop(module, None) or SharedModel(module, share, engine.device)
    known.fill(module, adapter_scale(engine))
    if not rollout.release_cache:
        SHARED[module] = known
    batch, numbers, start = gather_responses(prompts, uniforms, share)
    # Graphs with collectives in them have not been tried.
    whole = sample(SharedEngine(known.module, engine.device), batch, numbers, tokenizer, replace(rollout, graphs=False))
    rows = slice(start, start + len(prompts.samples))
    lengths = whole.lengths[rows]
    longest = int(lengths.max())
    return Responses(whole.tokens[rows, :longest], lengths, whole.ended[rows], whole.logprobs[rows, :longest])


@cache
def share_of(count: int) -> Share:
    """This rank's share where so many ranks, one after another, make a group. All ranks must ask."""
    groups = [dist.new_group(list(range(first, first + count))) for first in range(0, world(), count)]
    return Share(rank() % count, count, groups[rank() // count])


def gather_responses(prompts: PromptBatch, uniforms: np.ndarray, share: Share) -> tuple[PromptBatch, np.ndarray, int]:
    """The prompts of all ranks of the group with their numbers, and the row at which this rank's own begin."""
    limits = None if prompts.limits is None else prompts.limits.cpu()
    own = prompts.ids.cpu(), prompts.lengths.cpu(), prompts.samples, limits, uniforms
    parts: list[Any] = [None] * share.count
    dist.all_gather_object(parts, own, group=share.group)
    ids, lengths, samples, all_limits, numbers = zip(*parts, strict=True)
    width, device = max(part.size(1) for part in ids), prompts.ids.device
    padded = torch.cat([F.pad(part, (width - part.size(1), 0)) for part in ids])
    batch = PromptBatch(
        padded.to(device), torch.cat(lengths).to(device), [sample for part in samples for sample in part],
        None if limits is None else torch.cat(all_limits).to(device), prompts.copies,
    )  # fmt: skip
    return batch, np.concatenate(numbers), sum(len(part) for part in samples[: share.index])
