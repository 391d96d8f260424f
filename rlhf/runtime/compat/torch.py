"""torch's private names. Tried on torch 2.11 to 2.13."""

from typing import Any

import torch


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
