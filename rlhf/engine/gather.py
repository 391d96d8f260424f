"""Whole weights for a while: those of a model that ZeRO stage 3 shards, gathered once instead of layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import deepspeed
from torch import Tensor, nn

from rlhf.runtime.compat.deepspeed import held_whole, whole_size
from rlhf.runtime.device import free_bytes
from rlhf.runtime.distributed import gather

# Elements that are gathered in one go.
PORTION = 2**27
# The buffers that models were gathered into, of those that keep them.
KEPT: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()


def is_sharded(engine: Any) -> bool:
    """Whether weights are whole only while a layer reads them: at ZeRO stage 3, even on a single rank."""
    return bool(engine.zero_optimization_stage() == 3)


def fits_whole(engine: Any) -> bool:
    """Whether every rank has twice the memory left that the whole model takes, or has the buffers for it; all ranks must
    ask together."""
    size = sum(whole_size(p) * p.element_size() for p in engine.module.parameters())
    return engine.module in KEPT or all(free >= 2 * size for free in gather(free_bytes(engine.device)))


@contextmanager
def gathered(engine: Any, keep: bool) -> Iterator[None]:
    """A context in which every rank holds the whole model, and a forward pass talks to no other rank. Changes made to the
    weights inside it are lost. All ranks must enter it. `keep` the buffers for the next time: the weights are then where
    they were, as captured graphs need it."""
    parameters: list[Any] = list(engine.module.parameters())
    buffers = KEPT.pop(engine.module, [])
    fill(buffers, parameters)
    if keep:
        KEPT[engine.module] = buffers
    with held_whole(engine, buffers):
        yield


def fill(buffers: list[Tensor], parameters: list[nn.Parameter]) -> None:
    """Copy sharded weights, whole, into `buffers`, or into new ones if there are none; a portion of them at a time."""
    new, done = not buffers, 0
    for part in portions(parameters):
        with deepspeed.zero.GatheredParameters(part):
            if new:
                buffers += [parameter.detach().clone() for parameter in part]
            else:
                for buffer, parameter in zip(buffers[done : done + len(part)], part, strict=True):
                    buffer.copy_(parameter.detach())
        done += len(part)


def portions(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The weights in order, in parts of about PORTION elements."""
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
