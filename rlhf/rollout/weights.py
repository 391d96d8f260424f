"""The weights as a rollout wants them: whole on every rank where they fit, adapters merged."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from rlhf.config.schema import Rollout
from rlhf.engine.gather import fits_whole, gathered, is_sharded
from rlhf.models.lora import merge_lora_weight
from rlhf.runtime.distributed import is_main

told: set[str] = set()


@contextmanager
def synced_weights(engine: Any, rollout: Rollout) -> Iterator[bool]:
    """A context for a rollout of an engine; gives whether ranks go through it together, layer by layer."""
    with ExitStack() as stack:
        sharded = is_sharded(engine)
        whole = sharded and (rollout.gather == "all" or (rollout.gather == "auto" and fits_whole(engine)))
        if whole:
            keep = rollout.graphs and not rollout.release_cache and engine.device.type == "cuda"
            stack.enter_context(gathered(engine, keep))
        if sharded:
            announce("rollouts gather the whole model once" if whole else "rollouts gather the model layer by layer")
        scale = adapter_scale(engine)
        if scale is not None and (whole or not sharded):
            stack.enter_context(with_merged_adapters(engine.module, scale))
        yield sharded and not whole


def announce(text: str) -> None:
    """Say a choice, once."""
    if is_main() and text not in told:
        told.add(text)
        print(text, flush=True)


def adapter_scale(engine: Any) -> float | None:
    """What an engine's adapters are scaled by; None if it has none, or they are to be off."""
    if not hasattr(engine.module, "peft_config") or hasattr(engine, "off"):
        return None
    settings = engine.module.peft_config["default"]
    return float(settings.lora_alpha / settings.r)


@contextmanager
def with_merged_adapters(model: Any, scale: float) -> Iterator[None]:
    """A context in which adapters, times `scale`, are part of the weights, which are afterwards what they were, bit for
    bit."""
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
