"""The tensor that says it lies on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

CUDA = torch.device("cuda", 0)
# What memory holds that nobody has written since it was taken.
POISON = 0x7F


class GpuError(RuntimeError):
    """What a GPU would have refused."""


class DeviceStorage(torch.UntypedStorage):
    """The memory of a device tensor's numbers, which says that it lies on the GPU. It can be given back, and taken anew, in
    place."""

    # What is told of memory that is given back or taken anew: the simulation that is entered now.
    note: ClassVar[Callable[[torch.UntypedStorage], None] | None] = None

    @property
    def device(self):
        return CUDA

    def resize_(self, size):
        DeviceStorage.note(self)
        super().resize_(size)
        with torch._C._DisableTorchDispatch():
            bytes_of(self).fill_(POISON)


class DeviceTensor(torch.Tensor):
    """A tensor of the simulated GPU, around the tensor `inner` that holds its numbers."""

    inner: Tensor
    # What carries out operators: the simulation that is entered now.
    run: ClassVar[Callable[..., Any] | None] = None

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=CUDA
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if DeviceTensor.run is None:
            raise GpuError(f"{func} on a tensor of the GPU outside of the simulation")
        return DeviceTensor.run(func, args, kwargs or {})

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        storage = self.inner.untyped_storage()
        storage.__class__ = DeviceStorage
        return storage

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self):
        raise GpuError("can't convert cuda:0 device type tensor to numpy")

    def __repr__(self):
        return f"DeviceTensor({self.inner!r})"

    def __format__(self, spec):
        return self.item().__format__(spec) if self.dim() == 0 else repr(self)


def move_to_gpu(model):
    """Put a model on the GPU: its parameters, without gradients, and buffers; those that are one stay one."""
    moved = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, DeviceTensor):
                    continue
                if id(tensor) not in moved:
                    placed = DeviceTensor(tensor.detach())
                    moved[id(tensor)] = torch.nn.Parameter(placed, False) if tensors is module._parameters else placed
                tensors[name] = moved[id(tensor)]
    return model


def map_tensors(change, tree):
    """Return arguments or results with each tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: map_tensors(change, part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([map_tensors(change, part) for part in tree])
    return tree


def tensors_in(tree) -> list[Tensor]:
    """List the tensors among arguments or results."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def memory_of(tensor: Tensor) -> int:
    """Return a number that tells a plain tensor's memory from all other that is held now."""
    return tensor.untyped_storage()._cdata


def bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """Return memory as a tensor of bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@cache
def writes(func) -> tuple[tuple[int, str], ...]:
    """Return place and name of the arguments that an operator writes."""
    found = enumerate(func._schema.arguments)
    return tuple((place, part.name) for place, part in found if part.alias_info is not None and part.alias_info.is_write)


@cache
def is_view(func) -> bool:
    """Whether an operator gives another view of an argument, and reads nothing."""
    return any(part.alias_info is not None and not part.alias_info.is_write for part in func._schema.returns)


def is_given_back(tensor: Tensor) -> bool:
    """Whether a plain tensor's memory was given back."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def written(func, args, kwargs) -> list[Tensor]:
    """List the tensors that a call writes."""
    return tensors_in([args[place] if place < len(args) else kwargs.get(name) for place, name in writes(func)])
