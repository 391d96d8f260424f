"""Ending an update: the gradient's norm, and the optimiser's step, unless a gradient is not finite."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.runtime.compat import patched


@dataclass(frozen=True)
class Gradient:
    """The norm of an accumulated gradient over all ranks, without its loss scale; and what DeepSpeed made of it: a number,
    or one per parameter group, loss scale included."""

    norm: float
    raw: Any


def accumulate(engine: Any) -> None:
    """End a micro-batch that is not the last one of its update."""
    if not engine.is_gradient_accumulation_boundary():
        engine.step()


def optimizer_step(*engines: Any) -> list[float]:
    """End an update of engines that learn together: each takes its step, or, if the gradient of one of them is not finite
    on any rank (fp16 overflows that way), none does. Returns their gradient norms before clipping, over all ranks; NaN
    where they are not finite."""
    gradients = [measure_gradient(engine) for engine in engines]
    left_out = not all(math.isfinite(found.norm) for found in gradients)
    for engine, found in zip(engines, gradients, strict=True):
        with with_cached_grad_norm(engine, found, left_out):
            engine.step()
    return [found.norm if math.isfinite(found.norm) else math.nan for found in gradients]


def measure_gradient(engine: Any) -> Gradient:
    """What has been accumulated; all ranks must ask for it."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):  # ZeRO 1 and 2
        norm = optimizer.scaled_global_norm()
        return Gradient(float(norm) / float(optimizer.loss_scale), norm)
    if hasattr(optimizer, "_get_norm_groups"):  # ZeRO 3
        groups = optimizer._get_norm_groups()
        numbers = [float(norm) for norm in groups]
        whole = math.hypot(*numbers) if min(numbers) >= 0 else math.nan  # DeepSpeed says -1 for what is not finite
        return Gradient(whole / float(optimizer.loss_scale), groups)
    averaged = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return Gradient(float(torch.nn.utils.get_total_norm(averaged)), None)  # stage 0


@contextmanager
def with_cached_grad_norm(engine: Any, found: Gradient, left_out: bool) -> Iterator[None]:
    """Let the optimiser's step reuse the norm of this gradient. An update that is left out is told NaN: DeepSpeed then
    clears the gradient and leaves the weights alone, as at an overflow of its own."""
    optimizer = engine.optimizer
    with ExitStack() as stack:
        if hasattr(optimizer, "scaled_global_norm"):
            norm = found.raw * math.nan if left_out else found.raw
            stack.enter_context(patched(optimizer, "scaled_global_norm", lambda: norm))
        elif hasattr(optimizer, "_get_norm_groups"):
            groups = [norm * math.nan for norm in found.raw] if left_out else found.raw
            stack.enter_context(patched(optimizer, "_get_norm_groups", lambda: groups))
        elif left_out:
            engine.module.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient
            stack.enter_context(patched(engine, "clip_fp32_gradients", lambda: None))
        yield
