"""An exponential moving average of a model that learns, in float32; sharded as the model is."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Ppo
from rlhf.engine.save import whole_weight
from rlhf.runtime.compat.deepspeed import is_partitioned, local_shard, whole_shape, whole_size
from rlhf.runtime.distributed import is_main, world


class ExponentialMovingAverage:
    """The average of the trained weights after each update, `decay * average + (1 - decay) * weight`.

    It begins as a copy of the weights at update `ppo.ema_start` and follows them every `ppo.ema_interval` updates. Each
    rank keeps its shard at ZeRO stage 3; at lower stages rank 0 keeps the whole. In half precision it follows the weights
    as they are used, not the optimiser's float32 copies.
    """

    def __init__(self, engine: Any, ppo: Ppo) -> None:
        self.engine, self.ppo = engine, ppo
        self.shadows: dict[int, Tensor] = {}

    def parameters(self) -> list[Any]:
        """List the trained parameters of which this rank keeps an average."""
        trained = [parameter for parameter in self.engine.module.parameters() if parameter.requires_grad]
        return [parameter for parameter in trained if is_main() or is_partitioned(parameter)]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Follow the weights after so many updates of the actor."""
        if updates < self.ppo.ema_start or (updates - self.ppo.ema_start) % self.ppo.ema_interval:
            return
        for parameter in self.parameters():
            weight = local_shard(parameter).detach().float()
            shadow = self.shadows.get(id(parameter))
            if shadow is None:
                self.shadows[id(parameter)] = weight.clone()
            else:
                shadow.lerp_(weight, 1 - self.ppo.ema_decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the part of the average that this rank keeps."""
        kept = enumerate(self.shadows.get(id(parameter)) for parameter in self.parameters())
        return {f"average.{number}": shadow for number, shadow in kept if shadow is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Resume with such a state; other entries are ignored."""
        for number, parameter in enumerate(self.parameters()):
            if f"average.{number}" in state:
                self.shadows[id(parameter)] = state[f"average.{number}"].to(local_shard(parameter).device)
            else:
                self.shadows.pop(id(parameter), None)

    def read(self, parameter: Any) -> Tensor:
        """Return a parameter's average, whole and on the host of rank 0, in the parameter's format; its value where there
        is none. All ranks must call this."""
        if not is_partitioned(parameter):
            shadow = self.shadows.get(id(parameter))
            return whole_weight(parameter) if shadow is None else shadow.to(parameter.dtype).cpu().contiguous()
        if id(parameter) not in self.shadows:
            return whole_weight(parameter)
        shard = self.shadows[id(parameter)].flatten().to(self.engine.device)
        shards = [torch.empty_like(shard) for _ in range(world())]
        dist.all_gather(shards, shard)
        flat = torch.cat(shards)[: whole_size(parameter)]
        return flat.view(whole_shape(parameter)).to(parameter.dtype).cpu()


def build_average(actor: Any, ppo: Ppo, updates: int) -> ExponentialMovingAverage | None:
    """Start the moving average of the actor, if one is asked for. Raises ConfigError if it would begin after the last of so
    many updates."""
    if not ppo.ema:
        return None
    if ppo.ema_start > updates:
        problem = f"there are only {updates} updates to come"
        raise ConfigError("ppo.ema_start", ppo.ema_start, problem, "start earlier")
    average = ExponentialMovingAverage(actor, ppo)
    average.update(0)
    return average
