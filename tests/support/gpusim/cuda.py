"""torch.cuda's functions, as the simulation has them."""

import contextlib
import ctypes
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch

from support.gpusim.streams import HOST
from support.gpusim.tensors import GpuError

# Places of the table of device guards (c10/core/DeviceType.h), and its length.
CUDA_TYPE, META_TYPE, TYPES = 1, 14, 21


@contextlib.contextmanager
def meta_guard_for_cuda() -> Iterator[None]:
    """Let the meta device's guard, which does nothing, switch CUDA devices: CPU builds of torch ask for one wherever a
    tensor of such a device is indexed, and have none."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    former, guards[CUDA_TYPE] = guards[CUDA_TYPE], guards[CUDA_TYPE] or guards[META_TYPE]
    try:
        yield
    finally:
        guards[CUDA_TYPE] = former


class Stream:
    """A stream; number 0 is the default one. It may outlive the simulation that it was made in."""

    gpu: ClassVar[Any] = None
    numbers = count(1)

    def __init__(self, *_, number=None, **__):
        self.number = next(Stream.numbers) if number is None else number

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def wait_event(self, event):
        self.gpu.refuse_in_capture("one stream's wait for another")
        self.gpu.order.wait(self.number, event.clock)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self):
        self.gpu.wait("stream.synchronize", [self.number])

    def query(self):
        return self.gpu.order.is_done(self.number)


class Event:
    """A point in a stream's work."""

    def __init__(self, *_, **__):
        self.clock, self.number = None, 0

    def record(self, stream=None):
        self.number = (stream or Stream.gpu.stream).number
        self.clock = Stream.gpu.order.clock(self.number).copy()

    def wait(self, stream=None):
        (stream or Stream.gpu.stream).wait_event(self)

    def synchronize(self):
        Stream.gpu.wait("event.synchronize", [])
        Stream.gpu.order.wait(HOST, self.clock)


class CUDAGraph:
    """A graph of a GPU. When it goes, torch 2.12 and 2.13 free the workspaces of the stream that it was captured on, while
    others may use them (github.com/pytorch/pytorch/issues/193402)."""

    captured = None

    def capture_begin(self, pool=None, capture_error_mode="global"):
        Stream.gpu.begin_capture()

    def capture_end(self):
        self.gpu = Stream.gpu
        self.captured = self.gpu.end_capture()

    def replay(self):
        if self.captured is None:
            raise GpuError("a graph that holds nothing is replayed")
        Stream.gpu.replay(self.captured)

    def reset(self):
        former, self.captured = self.captured, None
        if former is not None:
            for graph in self.gpu.graphs:
                graph.is_stale |= graph.stream == former.stream

    __del__ = reset


@contextlib.contextmanager
def use_stream(stream):
    """Launch on a stream meanwhile."""
    former, Stream.gpu.stream = Stream.gpu.stream, stream
    try:
        yield
    finally:
        Stream.gpu.stream = former


@contextlib.contextmanager
def capture(graph, pool=None, stream=None, capture_error_mode="global"):
    """torch.cuda.graph, which waits for the GPU and empties the allocator's cache first."""
    Stream.gpu.wait("synchronize")
    Stream.gpu.emptied += 1
    with use_stream(stream or Stream()):
        graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            graph.capture_end()


def functions_of(gpu) -> dict[str, Any]:
    """Return the functions and classes to put in torch.cuda's place, by name."""

    def empty_cache():
        gpu.refuse_in_capture("empty_cache")
        gpu.emptied += 1

    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_device_name": lambda device=None: "simulated GPU",
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: gpu.stream,
        "stream": use_stream,
        "CUDAGraph": CUDAGraph,
        "graph": capture,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: gpu.capturing is not None,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
        "empty_cache": empty_cache,
        "mem_get_info": lambda device=None: (gpu.memory, gpu.memory),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "memory_snapshot": lambda mempool_id=None: [],
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
    }
