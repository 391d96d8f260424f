"""The weights for a rollout: whole on every rank where they fit, adapters merged."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rlhf.config.schema import Rollout
from rlhf.engine.gather import fits_whole, gather_weights, is_sharded
from rlhf.models.lora import merge_lora_weight
from rlhf.runtime.compat.deepspeed import held_whole
from rlhf.runtime.distributed import is_main

announced: set[str] = set()


class RolloutWeights:
    """The weights of an engine, as a sampler that reads them in place needs them.

    Without ZeRO stage 3 they are the training weights. At stage 3 `sync` gathers the whole model into buffers, unless
    `rollout.gather` or the memory says layer by layer. With CUDA graphs the buffers are kept: graphs read the weights at
    their addresses.
    """

    def __init__(self, engine: Any, rollout: Rollout) -> None:
        self.engine, self.rollout, self.sharded = engine, rollout, is_sharded(engine)
        self.keeps = rollout.graphs and not rollout.release_cache and engine.device.type == "cuda"
        self.buffers: list[Tensor] = []
        self.is_synced = not self.sharded

    def sync(self) -> None:
        """Gather sharded weights, if the whole model fits. All ranks must call it together."""
        if not self.sharded:
            return
        gather = self.rollout.gather
        whole = gather == "all" or (gather == "auto" and (bool(self.buffers) or fits_whole(self.engine)))
        if whole:
            gather_weights(self.buffers, list(self.engine.module.parameters()))
        announce("rollouts gather the whole model once" if whole else "rollouts gather the model layer by layer")
        self.is_synced = True

    @contextmanager
    def in_place(self) -> Iterator[bool]:
        """Give the engine's module these weights meanwhile, its adapters merged into them; yields whether ranks go through
        it together, layer by layer. Raises RuntimeError without a `sync` since the last one."""
        if not self.is_synced:
            raise RuntimeError("the sampler's weights are those of an earlier rollout: sync() comes before generate()")
        whole = bool(self.buffers)
        try:
            with ExitStack() as stack:
                if whole:
                    stack.enter_context(held_whole(self.engine, self.buffers))
                scale = adapter_scale(self.engine)
                if scale is not None and (whole or not self.sharded):
                    stack.enter_context(with_merged_adapters(self.engine.module, scale))
                yield self.sharded and not whole
        finally:
            self.is_synced = not self.sharded
            if not self.keeps:
                self.release()

    def release(self) -> None:
        """Free the buffers."""
        self.buffers = []
        self.is_synced = not self.sharded


def announce(text: str) -> None:
    """Print a choice, once per process, on rank 0."""
    if is_main() and text not in announced:
        announced.add(text)
        print(text, flush=True)


def adapter_scale(engine: Any) -> float | None:
    """Return the factor of an engine's adapters, alpha / rank; None if it has no adapters, or they are off."""
    if not hasattr(engine.module, "peft_config") or hasattr(engine, "off"):
        return None
    settings = engine.module.peft_config["default"]
    return float(settings.lora_alpha / settings.r)


@contextmanager
def with_merged_adapters(model: Any, scale: float) -> Iterator[None]:
    """Merge adapters, times `scale`, into the weights meanwhile. Afterwards the weights are as before, bit for bit."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    kept = [layer.base_layer.weight.detach().clone() for layer in layers]
    with torch.no_grad(), model.disable_adapter():
        for layer in layers:
            a, b = (factors["default"].weight for factors in (layer.lora_A, layer.lora_B))
            weight = layer.base_layer.weight
            weight.copy_(merge_lora_weight(weight, a, b, scale, isinstance(layer.base_layer, Conv1D)))
        try:
            yield
        finally:
            for layer, former in zip(layers, kept, strict=True):
                layer.base_layer.weight.copy_(former)
