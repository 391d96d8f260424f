"""The samples of a rollout, for the updates: B responses of at most R tokens after prompts of at most Q tokens."""

from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Experience:
    """Left-padded prompts and right-padded responses, and what was found at each action (token of a response).

    `prompts` [B, Q] and `prompt_mask`; `responses` [B, R] and `mask`, 1 on every action, end-of-text included;
    `loss_mask`, 1 on the actions that are trained; `logprobs` of the policy that sampled, `reference_logprobs`,
    `values`, `rewards`, `advantages` and `returns`, all [B, R] in float32; `scores` [B], the reward model's.
    """

    prompts: Tensor
    prompt_mask: Tensor
    responses: Tensor
    mask: Tensor
    loss_mask: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor

    def sequences(self) -> tuple[Tensor, Tensor]:
        """Return prompts and responses in one row each, and their mask, both [B, Q + R]."""
        ids = torch.cat([self.prompts, self.responses], dim=1)
        return ids, torch.cat([self.prompt_mask, self.mask], dim=1)

    def rows(self, indices: Tensor, trim: bool = True) -> "Experience":
        """Select samples; with `trim`, columns that are padding in all of them are cut off."""
        part = {f.name: getattr(self, f.name)[indices] for f in fields(self)}
        if not trim:
            return Experience(**part)
        left = part["prompts"].size(1) - int(part["prompt_mask"].sum(1).max())
        right = max(1, int(part["mask"].sum(1).max()))
        for name, tensor in part.items():
            if tensor.ndim == 2:
                part[name] = tensor[:, left:] if name.startswith("prompt") else tensor[:, :right]
        return Experience(**part)


def from_all_ranks(experience: Experience) -> Experience:
    """Gather the samples of all ranks, in order, on every rank, so that mini-batches do not depend on the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return experience
    widths = torch.tensor([experience.prompts.size(1), experience.responses.size(1)], device=experience.prompts.device)
    dist.all_reduce(widths, op=dist.ReduceOp.MAX)
    return Experience(
        **{f.name: gather_experience(getattr(experience, f.name), f.name, widths.tolist()) for f in fields(experience)}
    )


def gather_experience(tensor: Tensor, name: str, widths: list[int]) -> Tensor:
    """Gather one field of all ranks, padded to a common width on the side of its padding."""
    if tensor.ndim == 2:
        prompt = name.startswith("prompt")
        missing = widths[0 if prompt else 1] - tensor.size(1)
        tensor = F.pad(tensor, (missing, 0) if prompt else (0, missing))
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
