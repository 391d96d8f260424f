"""torch's private names. Tried on torch 2.11 to 2.13."""

from typing import Any

import torch


def allow_programs(count: int) -> None:
    """Let torch.compile keep up to `count` compiled programs for one piece of code; torch gives up after 8."""
    settings = torch._dynamo.config
    settings.recompile_limit = max(count, settings.recompile_limit)


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return a number that tells a storage from all others that live. It stays when the storage is resized, which moves its
    address."""
    key: int = storage._cdata
    return key


def cached_attention_kernel() -> Any:
    """Return the operator that reads runs of a key-value cache (`seqused_k`): torch's public attention functions have no
    such argument. Its use here is checked against a mask once per device (models/cached.py)."""
    return torch.ops.aten._flash_attention_forward
