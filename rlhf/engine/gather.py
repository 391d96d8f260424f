"""Gathering the whole weights of a model that ZeRO stage 3 shards, once instead of layer by layer."""

from collections.abc import Iterator
from typing import Any

import deepspeed
from torch import Tensor, nn

from rlhf.runtime.compat.deepspeed import whole_size
from rlhf.runtime.device import free_bytes
from rlhf.runtime.distributed import gather

# Elements that are gathered at once.
PORTION = 2**27


def is_sharded(engine: Any) -> bool:
    """Whether weights are whole only while a layer reads them: at ZeRO stage 3, even on a single rank."""
    return bool(engine.zero_optimization_stage() == 3)


def fits_whole(engine: Any) -> bool:
    """Whether every rank has twice the memory left that the whole model takes. All ranks must call it together."""
    size = sum(whole_size(p) * p.element_size() for p in engine.module.parameters())
    return all(free >= 2 * size for free in gather(free_bytes(engine.device)))


def gather_weights(buffers: list[Tensor], parameters: list[nn.Parameter]) -> None:
    """Copy sharded weights, whole, into `buffers`, or into new tensors if there are none; a portion of them at a time. All
    ranks must call it together."""
    new, done = not buffers, 0
    for part in split_into_portions(parameters):
        with deepspeed.zero.GatheredParameters(part):
            if new:
                buffers += [parameter.detach().clone() for parameter in part]
            else:
                for buffer, parameter in zip(buffers[done : done + len(part)], part, strict=True):
                    buffer.copy_(parameter.detach())
        done += len(part)


def split_into_portions(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split the weights, in order, into parts of about PORTION elements."""
    part: list[nn.Parameter] = []
    elements = 0
    for parameter in parameters:
        part.append(parameter)
        elements += whole_size(parameter)
        if elements >= PORTION:
            yield part
            part, elements = [], 0
    if part:
        yield part
