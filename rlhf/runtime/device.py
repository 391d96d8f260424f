"""The device: whether it is a GPU, its memory, its bandwidth."""

import gc
import os
import resource
import statistics
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from rlhf.runtime.distributed import world

COPIES = 10
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def on_gpu() -> bool:
    """Whether a GPU is in use."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    if on_gpu():
        torch.cuda.synchronize()


@cache
def copy_gb_s(device: torch.device) -> float:
    """Return the bandwidth of the device's memory, in GB/s: bytes read and bytes written by a copy that no cache holds, 2
    N of N bytes, over its time; the median of ten. The usual figure, which also data sheets count."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES + 1):
        synchronize()
        began = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * source.numel() / statistics.median(seconds[1:]) / 1e9


def busy_seconds() -> float:
    """Return a clock's seconds that count the device's work: on a GPU all, on a CPU those that this process had it."""
    return time.perf_counter() if on_gpu() else time.process_time()


@cache
def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of the fastest product of two square matrices that the device computes, in TFLOP/s: 2 N^3 operations
    over its busy seconds, the largest of medians over several N."""
    rates = []
    for width in (4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048):
        first, second = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(COPIES // 2 + 1):
            synchronize()
            began = busy_seconds()
            torch.mm(first, second)
            synchronize()
            seconds.append(busy_seconds() - began)
        rates.append(2 * width**3 / statistics.median(seconds[1:]) / 1e12)
    return max(rates)


def reset_peak() -> None:
    """Forget the largest memory so far: of the GPU, or of the process, where Linux lets it (man proc_pid_clear_refs)."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")


def held_gib() -> float:
    """Return the memory in use on the GPU now, in GiB; 0 on the CPU."""
    return torch.cuda.memory_allocated() / 2**30 if on_gpu() else 0.0


def free() -> None:
    """Return memory that nothing uses to the device."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def peak_memory_gib() -> float:
    """Return the largest memory in use so far, in GiB: the GPU's allocated bytes, or on the CPU the process's resident
    set less its libraries' files."""
    if on_gpu():
        return torch.cuda.max_memory_allocated() / 2**30
    if STATUS.exists():  # of this program alone: getrusage counts what the process held before it was started, too
        found = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return (int(found.split()[1]) * 2**10 - library_bytes()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@cache
def library_bytes() -> int:
    """Return the resident bytes of the files of this process's shared libraries when it was first asked. All processes
    share them, the kernel can drop them, and the same libraries take 0.08 or 0.14 GiB by how the page cache holds them."""
    maps = psutil.Process().memory_maps()
    return sum(part.rss - part.anonymous for part in maps if ".so" in Path(part.path).suffixes)


def send_numbers(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Return whole numbers as a tensor on a device. The host does not wait for a GPU, as it does where torch.tensor makes
    one there: for all that was launched before."""
    on_host = torch.tensor(numbers)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host.to(device)


def free_bytes(device: torch.device) -> int:
    """Return the bytes of memory at hand on this rank's device, with the memory that torch holds unused, unless it is a
    captured graph's; on the CPU its share of the machine's."""
    if device.type == "cuda":
        segments = [part for part in torch.cuda.memory_snapshot() if part["device"] == device.index]
        own = (part for part in segments if tuple(part["segment_pool_id"]) == (0, 0))  # graphs' pools have other numbers
        unused = sum(part["total_size"] - part["active_size"] for part in own)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", world()))
