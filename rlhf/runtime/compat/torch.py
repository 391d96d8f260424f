"""torch's private names. Tried on torch 2.11 to 2.13."""

from typing import Any

import torch
from torch import Tensor

from rlhf.planner.host import rounds_pinned

# Above so many MiB pinned memory is taken as asked for. What is pinned anew each step is smaller, and kept for reuse.
EXACT_ABOVE_MB = 16


def is_forked_from_cuda() -> bool:
    """Whether this process was forked after its parent had begun to use CUDA, and so cannot use it."""
    return bool(torch.cuda._is_in_bad_fork())


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return a number that tells a storage from all others that live. It stays when the storage is resized, which moves its
    address."""
    key: int = storage._cdata
    return key


def cached_attention_kernel() -> Any:
    """Return the operator that reads runs of a key-value cache (`seqused_k`): torch's public attention functions have no
    such argument. Its use here is checked against a mask once per device (models/cached.py)."""
    return torch.ops.aten._flash_attention_forward


def pack_weight(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a weight [N, K] in the order in which MKL's products with up to `rows` rows read it. No public
    function keeps one. Raises AttributeError where torch is built without MKL."""
    packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return packed


def multiply_packed(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product [B, N] of [B, K] with a packed weight, and a bias [N] added. torch asks for the rows that it was
    packed for, and reads `weight` itself if they are others; MKL serves others too, which models/step/packed.py tries."""
    product: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, bias, x.size(0))
    return product


def take_pinned_memory_exactly() -> None:
    """Have torch take as much pinned memory for a large tensor as the tensor has, where it can be told to: else it takes a
    power of two, 64 GiB for 48. It keeps no such block for reuse then, because torch 2.13 gives a block that is kept to a
    larger tensor too (github.com/pytorch/pytorch/pull/192722). A threshold of the user's own stays."""
    if rounds_pinned():
        return
    given = torch._C._accelerator_getAllocatorSettings()
    if "pinned_max" in given:
        return
    exact = f"pinned_max_round_threshold_mb:{EXACT_ABOVE_MB},pinned_max_cached_size_mb:{EXACT_ABOVE_MB}"
    torch._C._accelerator_setAllocatorSettings(f"{given},{exact}" if given else exact)
