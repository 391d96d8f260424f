"""The reference becomes a later policy (`ppo.reference_refresh`)."""

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.runtime.compat.deepspeed import drop_gathered, is_partitioned, local_shard
from rlhf.runtime.distributed import is_main, world


@torch.no_grad()
def refresh_reference(engine: DeepSpeedRLHFEngine) -> None:
    """Make the actor as it is now the reference, shard by shard; both are sharded alike."""
    with engine.models_on_device("critic", "ref"):
        for kept, learned in zip(engine.ref.module.parameters(), engine.actor.module.parameters(), strict=True):
            fill(kept, local_shard(learned))
        engine.mark_refreshed()


def reference_state(engine: DeepSpeedRLHFEngine) -> dict[str, Tensor]:
    """Return what this rank keeps of a reference that is a later policy, for a checkpoint; nothing of another one."""
    if not engine.is_refreshed:
        return {}
    with engine.models_on_device("critic", "ref"):
        parameters = list(engine.ref.module.named_parameters())
        return {
            f"reference.{name}": local_shard(parameter).detach().cpu()
            for name, parameter in parameters
            if is_main() or is_partitioned(parameter)
        }


@torch.no_grad()
def restore_reference(engine: DeepSpeedRLHFEngine, tensors: dict[str, Tensor]) -> None:
    """Put back what `reference_state` kept: of a reference that is not sharded rank 0 tells the others."""
    with engine.models_on_device("critic", "ref"):
        for name, parameter in engine.ref.module.named_parameters():
            if (value := tensors.get(f"reference.{name}")) is not None:
                fill(parameter, value)
            if world() > 1 and not is_partitioned(parameter):
                dist.broadcast(parameter.data, 0)
        engine.mark_refreshed()


def fill(parameter: torch.nn.Parameter, value: Tensor) -> None:
    """Give a parameter, or this rank's shard of it, a value."""
    shard = local_shard(parameter)
    shard.data.copy_(value.view(shard.shape))
    if is_partitioned(parameter):
        drop_gathered(parameter)
