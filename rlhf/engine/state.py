"""All of an engine that training changes, as named tensors: what a checkpoint holds and what resuming puts back.

Tensors are copied in place, so nothing is unpickled and no process holds more than one of them twice. Each rank keeps what
it alone has; what all ranks have alike rank 0 keeps. Frozen weights are not among it: they are where they came from.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.runtime.compat.deepspeed import (
    LOSS_SCALE,
    drop_gathered,
    is_partitioned,
    local_shard,
    loss_scale_state,
    master_weights,
    optimizer_moments,
    restore_loss_scale,
    steps_on_copies,
)
from rlhf.runtime.device import on_gpu
from rlhf.runtime.distributed import is_main

Find = Callable[[str], Tensor | None]


def trainable_parameters(engine: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and parameters that training changes."""
    return ((name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad)


def engine_state(engine: Any) -> dict[str, Tensor]:
    """Return the tensors of an engine that this rank saves in a checkpoint, by name."""
    state: dict[str, Tensor] = {}
    for name, parameter in trainable_parameters(engine):
        if is_main() or is_partitioned(parameter):
            state[f"weight/{name}"] = local_shard(parameter).detach()
    if not steps_on_copies(engine) and not is_main():
        return state
    known = optimizer_moments(engine)
    for number, master in enumerate(master_weights(engine)):
        if steps_on_copies(engine):
            state[f"master/{number}"] = master.detach()
        for key, value in known.get(master, {}).items():
            state[f"moment/{number}/{key}"] = torch.as_tensor(value)
    for key, value in loss_scale_state(engine).items():
        state[f"scale/{key}"] = torch.tensor(value, dtype=torch.float64)
    return state


@torch.no_grad()
def restore_engine(engine: Any, find: Find) -> None:
    """Put back what `engine_state` kept; `find` gives a tensor by its name, or None. Raises KeyError for one that is
    missing."""
    for name, parameter in trainable_parameters(engine):
        copy_tensor(local_shard(parameter), find, f"weight/{name}")
        if is_partitioned(parameter):
            drop_gathered(parameter)
    known = optimizer_moments(engine)
    for number, master in enumerate(master_weights(engine)):
        if steps_on_copies(engine):
            copy_tensor(master, find, f"master/{number}")
        state = {key: find(f"moment/{number}/{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if state["exp_avg"] is not None:
            known[master] = {key: load_into(value, master) for key, value in state.items() if value is not None}
    scale = {key: find(f"scale/{key}") for key in LOSS_SCALE}
    restore_loss_scale(engine, {key: float(value) for key, value in scale.items() if value is not None})


def copy_tensor(target: Tensor, find: Find, name: str) -> None:
    """Copy the saved tensor of a name into a tensor of the engine."""
    value = find(name)
    if value is None:
        raise KeyError(f"the checkpoint has no {name}")
    target.data.copy_(value.view(target.shape))


def load_into(value: Tensor, master: Tensor) -> Tensor | int:
    """Return a moment beside the tensor it belongs to; a count of steps stays a number where it was one (DeepSpeed's CPU
    Adam)."""
    return int(value) if value.dtype == torch.int64 else value.to(master.device, copy=True)


def generators() -> dict[str, Tensor]:
    """Return the state of every random generator of this process. Nothing here draws from one without seeding it first; a
    library may."""
    _, words, position, *half = np.random.get_state()
    _, words_of_python, other_half = random.getstate()
    state = {
        "generator/torch": torch.get_rng_state(),
        "generator/numpy": torch.tensor([*map(int, words), int(position)]),
        "generator/python": torch.tensor(words_of_python),
        # Normal numbers come in pairs: the second of one that was begun.
        "generator/numpy_half": torch.tensor(half, dtype=torch.float64),
        "generator/python_half": torch.tensor([] if other_half is None else [other_half], dtype=torch.float64),
    }
    if on_gpu():
        state["generator/cuda"] = torch.cuda.get_rng_state()
    return state


def restore_generators(find: Find) -> None:
    """Restore the state of every random generator; `find` gives a saved tensor by its name, or None."""
    if (state := find("generator/torch")) is not None:
        torch.set_rng_state(state)
    if (state := find("generator/numpy")) is not None:
        *words, position = state.tolist()
        begun, half = (0.0, 0.0) if (found := find("generator/numpy_half")) is None else found.tolist()
        np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, int(begun), half))
    if (state := find("generator/python")) is not None:
        found = find("generator/python_half")
        random.setstate((3, tuple(state.tolist()), *([None] if found is None or not len(found) else found.tolist())))
    if (state := find("generator/cuda")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state)
