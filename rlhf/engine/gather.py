"""Whole weights for a while: those of a model that ZeRO stage 3 shards, gathered once instead of layer by layer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import psutil
import torch

from rlhf.engine.distributed import gather, world


def is_sharded(engine: Any) -> bool:
    """Whether no rank holds the whole model."""
    return bool(engine.zero_optimization_stage() == 3 and engine.world_size > 1)


def fits_whole(engine: Any) -> bool:
    """Whether every rank has twice the memory left that the whole model takes; all ranks must ask together."""
    size = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in engine.module.parameters())
    return all(free >= 2 * size for free in gather(free_bytes(engine.device)))


def free_bytes(device: torch.device) -> int:
    """Memory at hand on this rank's device, what torch holds unused included; on the CPU its share of the machine's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", world()))


@contextmanager
def gathered(engine: Any) -> Iterator[None]:
    """A context in which every rank holds the whole model, and a forward pass talks to no other rank. Changes made to the
    weights inside it are lost. All ranks must enter it."""
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        # DeepSpeed's hooks would gather before each layer, and let go of it after.
        offload._remove_module_hooks()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()
