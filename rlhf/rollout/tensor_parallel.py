"""Sampling from a model that no device holds whole: groups of ranks share its layers and answer their prompts together."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Rollout
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch
from rlhf.engine.tensor_parallel import Share, SharedModel
from rlhf.rollout.base import Responses, Sampler
from rlhf.rollout.weights import adapter_scale, announce
from rlhf.runtime.distributed import rank, world


@dataclass(frozen=True)
class SharedEngine:
    """The part of an engine that a sampler reads, around a model whose layers are shared among ranks."""

    module: Any
    device: torch.device

    def zero_optimization_stage(self) -> int:
        """Return 0: the weights are where they are used, so that nothing is gathered."""
        return 0

    def eval(self) -> None:
        """Do nothing: the copy never trains."""


class TensorParallelSampler:
    """Samples from a model that no device holds whole: groups of `rollout.tensor_parallel` ranks share its layers and
    answer the prompts of all ranks of the group together, by another sampler (`kind`) on the shared copy."""

    def __init__(self, engine: Any, tokenizer: Tokenizer, rollout: Rollout, kind: type[Sampler]) -> None:
        self.engine, self.tokenizer, self.rollout, self.kind = engine, tokenizer, rollout, kind
        self.share = share_of(rollout.tensor_parallel)
        self.shared: SharedModel | None = None
        self.sampler: Sampler | None = None

    @staticmethod
    def problem(config: Config) -> ConfigError | None:
        """Return None: config/rollouts.py checks `rollout.tensor_parallel`."""
        return None

    def sync(self) -> None:
        """Fill the shared copy with the training weights, adapters merged. All ranks must call it together."""
        engine = self.engine
        announce(f"rollouts share each layer among {self.share.count} ranks")
        if self.shared is None or self.sampler is None:
            self.shared = SharedModel(engine.module, self.share, engine.device)
            # Graphs with collectives in them have not been tried.
            rollout = replace(self.rollout, graphs=False)
            self.sampler = self.kind(SharedEngine(self.shared.module, engine.device), self.tokenizer, rollout)
        self.shared.fill(engine.module, adapter_scale(engine))
        self.sampler.sync()

    def release(self) -> None:
        """Free the shared copy and all that is kept for it."""
        self.shared = self.sampler = None

    def generate(self, prompts: PromptBatch, draws: Tensor) -> Responses:
        """Answer the prompts of all ranks of the group on each of them; returns this rank's own. All ranks must call it
        together."""
        if self.sampler is None:
            raise RuntimeError("the shared copy has no weights: sync() comes before generate()")
        self.engine.eval()
        batch, numbers, start = gather_prompts(prompts, draws, self.share)
        whole = self.sampler.generate(batch, numbers)
        if self.rollout.release_cache:
            self.release()
        rows = slice(start, start + len(prompts.samples))
        lengths = whole.lengths[rows]
        longest = int(lengths.max())
        return Responses(whole.tokens[rows, :longest], lengths, whole.ended[rows], whole.logprobs[rows, :longest])


@cache
def share_of(count: int) -> Share:
    """Return this rank's share where each `count` ranks in a row make a group. All ranks must call it together."""
    groups = [dist.new_group(list(range(first, first + count))) for first in range(0, world(), count)]
    return Share(rank() % count, count, groups[rank() // count])


def gather_prompts(prompts: PromptBatch, draws: Tensor, share: Share) -> tuple[PromptBatch, Tensor, int]:
    """Collect the prompts of all ranks of the group with their draws, [sum of B, R]; and the row at which this rank's own
    begin."""
    limits = None if prompts.limits is None else prompts.limits.cpu()
    own = prompts.ids.cpu(), prompts.lengths.cpu(), prompts.samples, limits, draws.cpu()
    parts: list[Any] = [None] * share.count
    dist.all_gather_object(parts, own, group=share.group)
    ids, lengths, samples, all_limits, numbers = zip(*parts, strict=True)
    width, device = max(part.size(1) for part in ids), prompts.ids.device
    padded = torch.cat([F.pad(part, (width - part.size(1), 0)) for part in ids])  # [sum of B, longest Q]
    batch = PromptBatch(
        padded.to(device), torch.cat(lengths).to(device), [sample for part in samples for sample in part],
        None if limits is None else torch.cat(all_limits).to(device), prompts.copies,
    )  # fmt: skip
    return batch, torch.cat(numbers).to(device), sum(len(part) for part in samples[: share.index])
