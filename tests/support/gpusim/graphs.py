"""Captured graphs: what a capture records, and what a replay does with it."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from support.gpusim.kernels import KERNELS
from support.gpusim.tensors import POISON, GpuError, bytes_of, map_tensors, memory_of, tensors_in, written


class Operand:
    """A tensor of a graph: memory of the graph's own is held, that of others is known by its address alone, as a GPU's
    graph knows it."""

    def __init__(self, tensor, graph, where):
        storage = tensor.untyped_storage()
        self.size, self.stride, self.offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        self.dtype = tensor.dtype
        self.held = storage if memory_of(tensor) in graph.own else None
        self.known = None if self.held is not None else StorageWeakRef(storage)
        self.address, self.where = tensor.data_ptr(), where

    def read(self):
        """Return the tensor, as it is at a replay. Raises GpuError where its memory is no longer there."""
        storage = self.held
        if self.known is not None:
            if self.known.expired():
                raise GpuError(f"a graph reads freed memory, a tensor {tuple(self.size)} of {self.where}")
            storage = torch.UntypedStorage._new_with_weak_ptr(self.known.cdata)
            if self.size.numel() > 0 and storage.nbytes() == 0:
                raise GpuError(f"a graph reads memory that was given back, a tensor {tuple(self.size)} of {self.where}")
        tensor = torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)
        if tensor.numel() and tensor.data_ptr() != self.address:
            raise GpuError(f"a graph reads memory that has moved, a tensor {tuple(self.size)} of {self.where}")
        return tensor


def unpack(tree):
    """Return arguments with tensors for the operands."""
    if isinstance(tree, Operand):
        return tree.read()
    if isinstance(tree, dict):
        return {name: unpack(part) for name, part in tree.items()}
    return type(tree)([unpack(part) for part in tree]) if isinstance(tree, list | tuple) else tree


@dataclass
class Graph:
    """A captured graph, on the stream of its capture. `own` is the memory made inside, `shown` the Python tensors over it,
    and `former` what the memory of others held before the capture; `reads` and `writes` are the memory of others. It is
    stale when the workspace of its stream is gone."""

    stream: int
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    own: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    constants: set[int] = field(default_factory=set)
    shown: dict[int, list[weakref.ref]] = field(default_factory=dict)
    former: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    replays: int = 0
    is_stale: bool = False

    @property
    def kernels(self):
        """How many operators a replay carries out."""
        return sum("empty" not in str(func) for func, *_ in self.calls)

    def hold(self, tensors):
        """Keep numbers of the host, which are part of a kernel's arguments, as they are at the capture."""
        for tensor in tensors:
            self.own[memory_of(tensor)] = tensor.untyped_storage()
            self.constants.add(memory_of(tensor))

    def save(self, func, args, kwargs):
        """Remember what the memory of others held before an operator of the capture writes it."""
        for tensor in written(func, args, kwargs):
            key = memory_of(tensor)
            self.writes.add(key)
            if key not in self.own and key not in self.former:
                whole = bytes_of(tensor.untyped_storage())
                self.former[key] = whole, whole.clone()

    def record(self, func, args, kwargs, outs, made, where):
        """Add an operator; `made` tells which of its results `outs` are new memory."""
        what = f"{func} in {where}"
        for tensor, new in zip(outs, made, strict=True):
            if new:
                self.own[memory_of(tensor)] = tensor.untyped_storage()
        self.reads |= {memory_of(tensor) for tensor in tensors_in((args, kwargs))} - self.own.keys()

        def pack(tensor):
            return Operand(tensor, self, what)

        targets = [pack(tensor) if new else None for tensor, new in zip(outs, made, strict=True)]
        self.calls.append((func, *(map_tensors(pack, part) for part in (args, kwargs)), targets))

    def show(self, tensor, wrapper):
        """Remember a Python tensor over memory of the graph's own."""
        if memory_of(tensor) in self.own:
            self.shown.setdefault(memory_of(tensor), []).append(weakref.ref(wrapper))

    def finish(self):
        """End the capture, in which nothing was computed: put back what was written, poison what was made."""
        for whole, former in self.former.values():
            whole.copy_(former)
        self.former.clear()
        for key in self.own.keys() - self.constants:
            bytes_of(self.own[key]).fill_(POISON)

    def replay(self):
        """Carry out the recorded operators; then poison the memory that nothing shows, which other graphs of its pool may
        use."""
        self.replays += 1
        for func, args, kwargs, targets in self.calls:
            outs = tensors_in(KERNELS.get(str(func), func)(*unpack(args), **unpack(kwargs)))
            for target, value in zip(targets, outs, strict=True):
                if target is not None:
                    target.read().copy_(value)
        for key in self.own.keys() - self.constants:
            if all(shown() is None for shown in self.shown.get(key, [])):
                bytes_of(self.own[key]).fill_(POISON)
