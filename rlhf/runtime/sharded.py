"""Giving a model its weights one at a time, sharded at once under ZeRO stage 3."""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from rlhf.config.schema import Config, Zero
from rlhf.runtime.compat.transformers import mark_initialized
from rlhf.runtime.distributed import is_main
from rlhf.runtime.ds_config import zero_settings


def materialize(model: Any, config: Config, zero: Zero, value: Callable[[str, Tensor], Tensor]) -> None:
    """Replace the weights of a model that was built on the meta device by `value(name, empty)`, on the host.

    Under ZeRO stage 3 each is sharded before the next is asked for, and rank 0 alone is asked. A weight that two modules
    share is asked for once. Buffers get the values that transformers computes for them.
    """
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            users.setdefault(id(parameter), []).append((module, attribute))
    for name, empty in list(model.named_parameters()):
        asked = zero.stage != 3 or is_main()  # sharding begins with rank 0's value on all ranks
        weight = value(name, empty) if asked else torch.empty_like(empty, device="cpu")
        parameter = nn.Parameter(weight, requires_grad=empty.requires_grad)
        mark_initialized(parameter)
        for module, attribute in users[id(empty)]:
            setattr(module, attribute, parameter)
        if zero.stage == 3:
            shard(parameter, config, zero)
    fill_buffers(model)


def shard(parameter: nn.Parameter, config: Config, zero: Zero) -> None:
    """Keep this rank's part of a parameter."""
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero_settings(zero, config)}
    holder = nn.ParameterList([parameter])
    # DeepSpeed's linear function, which it then sets for the whole process, does not keep gathered weights for the backward
    # pass; torch's does, and all of them were whole by the end of a forward pass.
    deepspeed.zero.Init(holder, config_dict_or_path=settings, mem_efficient_linear=True, dtype=parameter.dtype)


def fill_buffers(model: Any) -> None:
    """Fill the buffers, which are no weights: rotary frequencies, masks."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            if buffer.device.type == "meta":
                setattr(module, name, torch.zeros_like(buffer, device="cpu"))
    with torch.no_grad():
        model.initialize_weights()
