"""An operator's way through the simulation: what a GPU refuses, what waits, what is recorded."""

import contextlib
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import rlhf
from support.gpusim.cuda import Stream, functions_of, meta_guard_for_cuda
from support.gpusim.graphs import Graph
from support.gpusim.kernels import KERNELS
from support.gpusim.streams import HOST, StreamOrder
from support.gpusim.tensors import (
    DeviceStorage,
    DeviceTensor,
    GpuError,
    is_given_back,
    is_view,
    map_tensors,
    memory_of,
    tensors_in,
    writes,
    written,
)

aten = torch.ops.aten
CPU = torch.device("cpu")
PACKAGE = f"{Path(rlhf.__file__).parent}/"
# Operators for which the host waits: it needs a number, or a shape that numbers decide.
NUMBERS = {
    aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default,
    aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default,
    aten.bincount.default,
}  # fmt: skip
# Operators that may have tensors of host and GPU: copies; and indices, which are copied first.
COPIES = {aten.copy_.default, aten._to_copy.default}
READ_BY_INDEX = {aten.index.Tensor}
WRITTEN_BY_INDEX = {aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
INDEXED = READ_BY_INDEX | WRITTEN_BY_INDEX
# Operators that take no number of the host (a tensor without dimensions) beside tensors of the GPU, as others do.
STRICT = {"cat", "stack", "gather", "scatter", "index_select", "embedding", "bmm", "mm", "index_copy_", "index_copy"}
# What launches nothing.
FREE = {aten.detach.default, aten.alias.default}


class SimulatedGPU(TorchDispatchMode):
    """The simulated GPU `cuda:0` of the default stream, while it is entered."""

    def __init__(self, capability=(9, 0), memory=80 * 2**30):
        super().__init__()
        self.capability, self.memory, self.emptied = capability, memory, 0
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches = 0
        self.capturing: Graph | None = None
        self.graphs: list[Graph] = []
        self.order, self.stream = StreamOrder(), Stream(number=0)
        self.known: dict[int, StorageWeakRef] = {}  # a weak reference keeps the number of memory from being used again
        self.pinned: set[int] = set()

    def __enter__(self):
        def pin(tensor, *_, **__):
            return self.call_on_host(aten.clone.default, (tensor,), {"pin_memory": True})

        self.stack = contextlib.ExitStack()
        self.stack.enter_context(meta_guard_for_cuda())
        for owner, names in ((torch.cuda, functions_of(self)), (torch.Tensor, {"pin_memory": pin})):
            for name, value in names.items():
                self.stack.enter_context(mock.patch.object(owner, name, value, create=True))
        self.stack.enter_context(mock.patch.object(Stream, "gpu", self))
        self.stack.enter_context(mock.patch.object(DeviceTensor, "run", staticmethod(self.call)))
        self.stack.enter_context(mock.patch.object(DeviceStorage, "note", staticmethod(self.change_memory)))
        self.lifts_cpu_alone = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=CUDA) is a host tensor that is copied
        return super().__enter__()

    def __exit__(self, *exc):
        result = super().__exit__(*exc)
        torch._C._set_only_lift_cpu_tensors(self.lifts_cpu_alone)
        self.stack.close()
        return result

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    # -- waiting
    def wait(self, why, streams=None):
        """Let the host wait for these streams (None: all)."""
        self.refuse_in_capture(why)
        self.waits[caller(), why] += 1
        for stream in list(self.order.clocks) if streams is None else streams:
            self.order.wait(HOST, self.order.clock(stream))

    def refuse_in_capture(self, what):
        """Raise GpuError while a graph is captured."""
        if self.capturing is not None:
            raise GpuError(f"{what} while a graph is captured, in {caller()}")

    # -- operators
    def call(self, func, args, kwargs):
        """Carry out an operator."""
        given = tensors_in((args, kwargs))
        ours = [tensor for tensor in given if isinstance(tensor, DeviceTensor)]
        host = [tensor for tensor in given if not isinstance(tensor, DeviceTensor)]
        target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not ours and (target is None or target.type != "cuda"):
            return self.call_on_host(func, args, kwargs)
        self.check_places(func, args, ours, host)
        if not is_view(func) and any(is_given_back(tensor.inner) for tensor in ours):
            raise GpuError(f"{func} on memory that was given back, in {caller()}")
        leaving, waits = self.host_waits(func, args, kwargs, ours, target)
        if self.capturing is not None and self.stream.number != self.capturing.stream:
            raise GpuError(f"{func} on another stream than the one that is captured")
        baked = {id(x): x.clone() for x in host if x.dim() == 0} if self.capturing is not None else {}
        args, kwargs = (
            map_tensors(lambda x: x.inner if isinstance(x, DeviceTensor) else baked.get(id(x), x), part)
            for part in (args, kwargs)
        )
        kwargs = {name: value for name, value in kwargs.items() if name not in ("non_blocking", "pin_memory")}
        if target is not None:
            kwargs["device"] = CPU
        numbers = {memory_of(x) for x in host if x.dim() == 0 and memory_of(x) not in self.pinned}
        out = self.carry_out(func, args, kwargs, list(baked.values()), numbers)
        if leaving and not waits:
            self.pinned.add(self.key(out))
        for why in waits:
            self.wait(why, [self.stream.number])
        if leaving:
            return out
        return map_tensors(lambda tensor: self.wrap(tensor, ours), out)

    def carry_out(self, func, args, kwargs, baked, numbers):
        """Compute, and note what was launched, in which order, in which graph. `numbers` is memory of the host of which a
        kernel is given the number; `baked` are copies of such numbers, for a graph."""
        before = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
        graph = self.capturing
        if graph is not None:
            graph.hold(baked)
            graph.save(func, args, kwargs)
        changed = [] if graph is not None else [self.key(tensor) for tensor in written(func, args, kwargs)]
        out = KERNELS.get(str(func), func)(*args, **kwargs)
        outs = tensors_in(out)
        made = [memory_of(tensor) not in before for tensor in outs]
        is_view = bool(outs) and not any(made) and not writes(func)
        if is_view or func in FREE:
            return out
        if graph is not None:
            graph.record(func, args, kwargs, outs, made, caller())
            return out
        self.launches += "empty" not in str(func)
        reads = [self.key(tensor) for tensor in tensors_in((args, kwargs)) if memory_of(tensor) not in numbers]
        self.order.start(self.stream.number, reads, [*changed, *map(self.key, outs)], lambda: f"{func} in {caller()}")
        return out

    def call_on_host(self, func, args, kwargs):
        """Carry out an operator of the host. What a stream still writes or reads in pinned memory, it may not touch."""
        if kwargs.get("pin_memory"):
            out = func(*args, **{name: value for name, value in kwargs.items() if name != "pin_memory"})
            self.pinned.add(self.key(out))
            return out
        if self.pinned:
            touched = [memory_of(tensor) for tensor in tensors_in((args, kwargs))]
            if any(key in self.pinned for key in touched):
                changed = [memory_of(tensor) for tensor in written(func, args, kwargs)]
                self.order.start(HOST, touched, changed, lambda: f"{func} in {caller()}")
        return func(*args, **kwargs)

    def wrap(self, tensor, ours):
        """Return the device tensor of a result: the argument itself, where the operator returns it."""
        for given in ours:
            if tensor is given.inner:
                return given
        made = DeviceTensor(tensor)
        if self.capturing is not None:
            self.capturing.show(tensor, made)
        return made

    def key(self, tensor):
        """Return the number of a tensor's memory, which no other memory ever gets in this simulation."""
        return self.key_of(tensor.untyped_storage())

    def key_of(self, storage):
        """Return the number of memory."""
        key = storage._cdata
        if key not in self.known:
            self.known[key] = StorageWeakRef(storage)
        return key

    def change_memory(self, storage):
        """Let the stream give memory back, or take it anew; no other may still use it."""
        self.refuse_in_capture("memory that is given back")
        self.order.start(self.stream.number, [], [self.key_of(storage)], lambda: f"giving memory back in {caller()}")

    def check_places(self, func, args, ours, host):
        """Refuse an operator over tensors of the host and of the GPU."""
        large = [tensor for tensor in host if tensor.dim() > 0]
        if not ours or func in COPIES:
            return
        if large and (func not in INDEXED or not isinstance(args[0], DeviceTensor)):
            raise GpuError(f"{func}: tensors of host {[tuple(tensor.shape) for tensor in large]} and GPU, in {caller()}")
        if host and str(func).split(".")[1] in STRICT:
            raise GpuError(f"{func}: a number of the host among tensors of the GPU, in {caller()}")

    def host_waits(self, func, args, kwargs, ours, target):
        """Return whether an operator's result lies on the host, and why the host waits for it."""
        if func in COPIES:
            return self.copy_waits(func, args, kwargs, target)
        whys = []
        if (func in NUMBERS and ours) or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
            whys = [name_of(func)]
        elif func in INDEXED:
            indices = tensors_in(args[1])
            fills = func in WRITTEN_BY_INDEX and args[2].numel() == 1
            if not fills and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                whys = ["index by a mask"]
            elif any(not isinstance(index, DeviceTensor) for index in indices):
                whys = ["index of the host"]
        return False, whys

    def copy_waits(self, func, args, kwargs, target):
        """Return whether a copy's result lies on the host, and why the host waits for it: not for copies that are asked not
        to block, from and to pinned memory."""
        in_place = func is aten.copy_.default
        source = args[1] if in_place else args[0]
        to_host = not isinstance(args[0], DeviceTensor) if in_place else target is not None and target.type == "cpu"
        if not to_host and isinstance(source, DeviceTensor):
            return False, []
        blocks = not (kwargs.get("non_blocking") or (in_place and len(args) > 2 and args[2]))
        host = args[0] if in_place and to_host else source
        is_pinned = (to_host and not in_place) or (not isinstance(host, DeviceTensor) and memory_of(host) in self.pinned)
        if is_pinned and not blocks:
            return to_host, []
        source = "" if is_pinned else " from pageable memory"
        return to_host, ["copy to the host" if to_host else f"copy to the GPU{source}"]

    # -- graphs
    def begin_capture(self):
        self.refuse_in_capture("a capture")
        if self.stream.number == 0:
            raise GpuError("a capture on the default stream")
        self.capturing = Graph(self.stream.number)

    def end_capture(self):
        graph, self.capturing = self.capturing, None
        with torch._C._DisableTorchDispatch():
            graph.finish()
        self.graphs.append(graph)
        return graph

    def replay(self, graph):
        self.refuse_in_capture("a replay")
        if graph.is_stale:
            raise GpuError("a graph is replayed whose stream has lost its workspace with another graph")
        self.order.start(self.stream.number, graph.reads, graph.writes | graph.own.keys(), lambda: "a graph's replay")
        with torch._C._DisableTorchDispatch():
            graph.replay()


def name_of(func):
    """Return an operator's name as users know it."""
    return "item" if func is aten._local_scalar_dense.default else str(func).split(".")[1].lstrip("_")


def caller():
    """Name the function of rlhf/ that leads here, and the library's function that it came through, if any."""
    frame, library = sys._getframe(2), None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            name = f"{file.removeprefix(PACKAGE)} {frame.f_code.co_qualname}"
            return name if library is None else f"{name} ({library})"
        if library is None and "/support/gpusim/" not in file and "/torch/" not in file:
            library = f"{Path(file).name} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return library or "?"
