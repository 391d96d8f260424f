"""Statistics over the tokens that count. Masks are 1 for a real token and 0 for padding, of the values' shape."""

import torch
import torch.distributed as dist
from torch import Tensor


def zero_padding(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is 1 and 0 elsewhere. Padding may hold anything, NaN included; its gradient is 0."""
    return torch.where(mask.bool(), values, torch.zeros_like(values))


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` is 1; a scalar. Padding may hold anything, NaN included."""
    return zero_padding(values, mask).sum()


def masked_sum_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of each row's `values` where `mask` is 1, [B]. Padding may hold anything, NaN included."""
    return zero_padding(values, mask).sum(1)


def gather_rows(values: Tensor) -> tuple[Tensor, int]:
    """Concatenate the equally long tensors of all ranks, in their order; and where this rank's begins."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values, 0
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts), dist.get_rank() * len(values)


def all_ranks_sum(values: Tensor) -> Tensor:
    """Elementwise sum of a tensor over all ranks."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def global_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of the masked values of all ranks; two float64 scalars.

    The variance is summed around the global mean, in a second pass, so that it does not cancel.
    """
    wide = values.double()
    total, count = all_ranks_sum(torch.stack([masked_sum(wide, mask), mask.sum().double()]))
    mean = total / count.clamp(min=1)
    squares = all_ranks_sum(masked_sum((wide - mean) ** 2, mask))
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale masked values to standard deviation 1 over all ranks, and to mean 0 unless `shift_mean` is false.

    Shape and dtype of `values` are kept; padding becomes 0.
    """
    mean, std = global_moments(values, mask)
    whitened = (values.double() - mean) / (std + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return zero_padding(whitened, mask).to(values.dtype)


def last_action(mask: Tensor) -> Tensor:
    """Mark each row's last action: [B, R] with a 1 there and 0 elsewhere."""
    return mask * (mask.cumsum(1) == mask.sum(1, keepdim=True)).long()
