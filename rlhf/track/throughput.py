"""Clocks, and what they say about speed and memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from rlhf.config.schema import Config


@dataclass
class Clock:
    """Seconds per named phase; on a GPU, a phase ends when its kernels have."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to phase `name`."""
        synchronize()
        start = time.perf_counter()
        yield
        synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def on_gpu() -> bool:
    """Whether a GPU is in use."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    if on_gpu():
        torch.cuda.synchronize()


def speed(config: Config, prefix: str, seconds: float, samples: float, tokens: float, flops: float) -> dict[str, float]:
    """Throughput metrics of a phase from its totals over all ranks. `prefix` is empty for the whole step."""
    devices = config.hardware.nodes * config.hardware.gpus_per_node
    peak = getattr(config.hardware.peak_tflops, config.precision.dtype)
    tflops = flops / seconds / devices / 1e12
    name = f"throughput/{prefix}_" if prefix else "throughput/"
    return {
        f"{name}samples_per_s": samples / seconds,
        f"{name}tokens_per_s": tokens / seconds,
        f"{name}tflops_per_gpu": tflops,
        f"{name}mfu": tflops / peak,
    }


def peak_memory_gib() -> float:
    """Largest memory in use so far: the GPU's allocated bytes, or on the CPU the process's resident set."""
    if on_gpu():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
