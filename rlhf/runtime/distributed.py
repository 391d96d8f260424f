"""Processes: starting them as one group, and what they tell each other."""

import logging
import os
import warnings
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from rlhf.config.derive import ranks
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.runtime.compat.deepspeed import import_muon, share_partition_groups, skip_shared_memory_kernel
from rlhf.runtime.compat.torch import take_pinned_memory_exactly


def start(config: Config) -> None:
    """Join the process group that the environment describes (one process if it describes none), once."""
    if not dist.is_initialized():
        join(config)
    if world() != ranks(config):
        raise ConfigError(
            "hardware.gpus_per_node",
            config.hardware.gpus_per_node,
            f"the configuration describes {ranks(config)} processes, but this group has {world()}",
            "start one process per device, as `python -m rlhf` does",
        )


def join(config: Config) -> None:
    """Initialise the process group through DeepSpeed."""
    os.environ["DS_ACCELERATOR"] = config.hardware.device
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "0"),
    ):
        os.environ.setdefault(name, value)
    import_libraries()
    import deepspeed

    if config.hardware.device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("hardware.device", "cuda", "torch sees no GPU here", "try hardware=cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # cuDNN's attention plans anew, for tens of milliseconds, at each shape that it has not seen; texts have many.
        torch.backends.cuda.enable_cudnn_sdp(False)
        take_pinned_memory_exactly()
    else:
        if config.launcher.threads is not None:
            torch.set_num_threads(config.launcher.threads)
        skip_shared_memory_kernel()
    from deepspeed.accelerator import get_accelerator

    if config.precision.dtype == "fp16" and not get_accelerator().is_fp16_supported():
        raise ConfigError("precision.dtype", "fp16", "this device does not train in fp16", "try precision=fp32")
    backend = "nccl" if config.hardware.device == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(minutes=30), verbose=False)


@cache
def import_libraries() -> None:
    """Import what every stage needs, for the device that DS_ACCELERATOR names. This touches no device, so that a process
    can be forked afterwards."""
    silence_libraries()
    share_partition_groups()
    import_muon()


def leave() -> None:
    """Leave the process group: nccl warns of a process that ends in it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def silence_libraries() -> None:
    """Silence what libraries say of themselves; warnings about the user's input stay."""
    verbosity = os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if verbosity == "error":  # transformers reads the variable at its first import, which may lie behind
        transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*|deepspeed\..*|transformers\..*")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed.*")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def rank() -> int:
    """Return this process's rank: its number among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


def device(config: Config) -> torch.device:
    """Return this process's device."""
    if config.hardware.device == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


def gather(value: Any) -> list[Any]:
    """Return every rank's picklable value, in rank order, on every rank."""
    values: list[Any] = [None] * world()
    if world() == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def total(*values: float) -> list[float]:
    """Return each number summed over all ranks, in double precision."""
    if world() == 1:
        return [float(value) for value in values]
    on = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=on)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def maximum(value: float) -> float:
    """Return the largest of the ranks' numbers."""
    return float(max(gather(value)))
