"""Engines that are put aside while they have nothing to do: their memory on the device is free, and what was in it lies in
the host's until it is needed."""

from typing import Any

import torch
from torch import Tensor

from rlhf.engine.state import held, masters, moments
from rlhf.runtime.device import synchronize


class Aside:
    """An engine that can be put aside.

    It is the storages that are emptied and filled again, so that all that looks at them (weights, shards, DeepSpeed's flat
    buffers) stays as it is and no hook is lost, at any ZeRO stage. What a `frozen` engine holds is copied to the host once.
    """

    def __init__(self, engine: Any, frozen: bool) -> None:
        self.engine, self.frozen, self.away = engine, frozen, False
        self.copies: list[tuple[torch.UntypedStorage, Tensor]] = []
        engine.module.register_forward_pre_hook(self.refuse)

    def refuse(self, *_: Any) -> None:
        """No pass goes through a model that is put aside."""
        if self.away:
            raise RuntimeError("the model is put aside (ppo.offload_idle)")

    def put(self) -> None:
        """Put the engine aside, if it is not."""
        if self.away:
            return
        self.away = True
        if not (self.frozen and self.copies):
            former = {storage._cdata: copy for storage, copy in self.copies}
            kept = storages(self.engine, self.frozen)
            self.copies = [(storage, host_copy(storage, former.get(storage._cdata))) for storage in kept]
            synchronize()
        for storage, _ in self.copies:
            storage.resize_(0)

    def fetch(self) -> None:
        """Have it back, as it was."""
        if not self.away:
            return
        self.away = False
        for storage, copy in self.copies:
            storage.resize_(copy.numel())
            as_bytes(storage).copy_(copy, non_blocking=True)
        synchronize()  # DeepSpeed reads shards from a stream of its own


def storages(engine: Any, frozen: bool) -> list[torch.UntypedStorage]:
    """The memory on its device that an engine's weights and optimiser state lie in, each piece once."""
    tensors: list[Tensor] = [*engine.module.parameters(), *map(held, engine.module.parameters())]
    if not frozen:
        tensors += masters(engine)
        tensors += [value for state in moments(engine).values() for value in state.values() if torch.is_tensor(value)]
    found = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors if on_device(tensor, engine)}
    return [storage for storage in found.values() if storage.nbytes() > 0]


def on_device(tensor: Tensor, engine: Any) -> bool:
    """Whether a tensor lies on the engine's device; ZeRO's own offloading keeps some on the host."""
    return tensor.device.type == torch.device(engine.device).type


def as_bytes(storage: torch.UntypedStorage) -> Tensor:
    """A storage as a tensor of bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def host_copy(storage: torch.UntypedStorage, former: Tensor | None) -> Tensor:
    """What a storage holds, in host memory that a GPU can write by itself: that of its `former` copy, if it fits."""
    copy = former
    if copy is None or copy.numel() != storage.nbytes():
        copy = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
    return copy.copy_(as_bytes(storage), non_blocking=True)
