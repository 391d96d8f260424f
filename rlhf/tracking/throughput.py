"""Clocks, and the time, throughput and memory of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlhf.config.derive import ranks
from rlhf.config.schema import Config
from rlhf.runtime.device import busy_seconds, peak_memory_gib, synchronize
from rlhf.runtime.distributed import maximum, total


@dataclass
class Clock:
    """Seconds by phase; on a GPU a phase ends when its kernels have. `busy` are those that the device worked: on a CPU the
    processor's, to which other programs on the machine add nothing."""

    seconds: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to phase `name`."""
        synchronize()
        start, used = time.perf_counter(), busy_seconds()
        yield
        synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.busy[name] = self.busy.get(name, 0.0) + busy_seconds() - used


def throughput_metrics(
    config: Config, prefix: str, seconds: float, samples: float, tokens: float, flops: float
) -> dict[str, float]:
    """Return the throughput metrics of a phase from its totals over all ranks; `prefix` is empty for the whole step."""
    peak = getattr(config.hardware.peak_tflops, config.precision.dtype)
    tflops = flops / seconds / ranks(config) / 1e12
    name = f"throughput/{prefix}_" if prefix else "throughput/"
    return {
        f"{name}samples_per_s": samples / seconds,
        f"{name}tokens_per_s": tokens / seconds,
        f"{name}tflops_per_gpu": tflops,
        f"{name}mfu": tflops / peak,
    }


def step_speed(config: Config, lengths: list[int], flops: int, clock: Clock) -> dict[str, float]:
    """Return the time, throughput and memory of one step of supervised training, over all ranks; `lengths` of the sequences
    in tokens and `flops` (operations) are this rank's."""
    samples, tokens, operations = total(len(lengths), sum(lengths), flops)
    seconds = maximum(clock.seconds["step"])
    whole = throughput_metrics(config, "", seconds, samples, tokens, operations)
    return {"time/step_s": seconds, "memory/peak_gib": maximum(peak_memory_gib()), **whole}
