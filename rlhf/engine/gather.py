"""Whole weights for a while: those of a model that ZeRO stage 3 shards, gathered once instead of layer by layer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch

from rlhf.engine.distributed import gather


def is_sharded(engine: Any) -> bool:
    """Whether weights are whole only while a layer reads them: at ZeRO stage 3, even on a single rank."""
    return bool(engine.zero_optimization_stage() == 3)


def fits_whole(engine: Any) -> bool:
    """Whether every rank has twice the memory left that the whole model takes; all ranks must ask together."""
    size = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in engine.module.parameters())
    return all(free >= 2 * size for free in gather(free_bytes(engine)))


def free_bytes(engine: Any) -> int:
    """Memory at hand on this rank's device; on the CPU its share of the machine's."""
    if engine.device.type == "cuda":
        return int(torch.cuda.mem_get_info(engine.device)[0])
    here = int(os.environ.get("LOCAL_WORLD_SIZE", engine.world_size))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // here


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
