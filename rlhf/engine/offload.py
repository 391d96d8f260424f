"""Offloading idle engines: their weights and optimizer state move to host memory, and back before they are used."""

from typing import Any

import torch
from torch import Tensor

from rlhf.runtime.compat.deepspeed import local_shard, master_weights, optimizer_moments
from rlhf.runtime.compat.torch import storage_key
from rlhf.runtime.device import synchronize

# Host memory for copies is not split further, in bytes.
PIECE = 2**20


class OffloadedEngine:
    """An engine whose memory on the device can be freed while it is idle.

    Storages are freed and refilled in place. Tensors, shards and hooks that refer to them stay valid at any ZeRO stage. A
    `frozen` engine is copied to the host once.
    """

    def __init__(self, engine: Any, frozen: bool) -> None:
        self.engine, self.frozen, self.away = engine, frozen, False
        self.copies: list[tuple[torch.UntypedStorage, list[Tensor]]] = []
        engine.module.register_forward_pre_hook(self.refuse)

    def refuse(self, *_: Any) -> None:
        """Raise RuntimeError at a forward pass of a model that is in host memory."""
        if self.away:
            raise RuntimeError("the model is in host memory (ppo.offload_idle)")

    def to_host(self) -> None:
        """Move the engine to host memory. Does nothing if it is there."""
        if self.away:
            return
        self.away = True
        if not (self.frozen and self.copies):
            former = {storage_key(storage): copy for storage, copy in self.copies}
            kept = storages(self.engine, self.frozen)
            self.copies = [(storage, copy_to_host(storage, former.get(storage_key(storage)))) for storage in kept]
            synchronize()
        for storage, _ in self.copies:
            storage.resize_(0)

    def to_device(self) -> None:
        """Move the engine back to its device. Does nothing if it is there."""
        if not self.away:
            return
        self.away = False
        for storage, pieces in self.copies:
            storage.resize_(sum(map(len, pieces)))
            for target, piece in zip(split_into_pieces(storage), pieces, strict=True):
                target.copy_(piece, non_blocking=True)
        synchronize()  # DeepSpeed reads shards from a stream of its own


def storages(engine: Any, frozen: bool) -> list[torch.UntypedStorage]:
    """Return the memory on its device that an engine's weights and optimiser state lie in, each piece once."""
    tensors: list[Tensor] = [*engine.module.parameters(), *map(local_shard, engine.module.parameters())]
    if not frozen:
        tensors += master_weights(engine)
        tensors += [
            value for state in optimizer_moments(engine).values() for value in state.values() if torch.is_tensor(value)
        ]
    kept = [tensor.untyped_storage() for tensor in tensors if is_on_device(tensor, engine)]
    found = {storage_key(storage): storage for storage in kept}
    return [storage for storage in found.values() if storage.nbytes() > 0]


def is_on_device(tensor: Tensor, engine: Any) -> bool:
    """Whether a tensor lies on the engine's device; ZeRO's own offloading keeps some on the host."""
    return tensor.device.type == torch.device(engine.device).type


def view_as_bytes(storage: torch.UntypedStorage) -> Tensor:
    """Return a storage as a tensor of bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def split_into_pieces(storage: torch.UntypedStorage) -> tuple[Tensor, ...]:
    """Return a storage as pieces of bytes, each a power of two long, but for a last one below PIECE."""
    left, sizes = storage.nbytes(), []
    while left >= PIECE:
        sizes.append(1 << (left.bit_length() - 1))
        left -= sizes[-1]
    pieces: tuple[Tensor, ...] = view_as_bytes(storage).split([*sizes, left] if left else sizes)
    return pieces


def copy_to_host(storage: torch.UntypedStorage, former: list[Tensor] | None) -> list[Tensor]:
    """Return what a storage holds, in host memory that a GPU can write by itself: that of its `former` copy, if it fits. It
    is in pieces, since torch takes a power of two of such memory for each tensor: 64 GiB for 33."""
    parts, pinned = split_into_pieces(storage), storage.device.type == "cuda"
    copies = former
    if copies is None or list(map(len, copies)) != list(map(len, parts)):
        copies = [torch.empty(len(part), dtype=torch.uint8, pin_memory=pinned) for part in parts]
    return [copy.copy_(part, non_blocking=True) for copy, part in zip(copies, parts, strict=True)]
