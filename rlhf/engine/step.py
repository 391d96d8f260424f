"""Ending an update: the gradient's norm, and the optimiser's step, unless a gradient is not finite."""

import math
from typing import Any

from rlhf.runtime.compat.deepspeed import fill_gradients, measure_gradient, with_cached_grad_norm


def accumulate(engine: Any) -> None:
    """End a micro-batch that is not the last one of its update."""
    if not engine.is_gradient_accumulation_boundary():
        engine.step()


def optimizer_step(*engines: Any) -> list[float]:
    """End an update of engines that learn together: each takes its step, or, if the gradient of one of them is not finite
    on any rank (fp16 overflows that way), none does. Returns their gradient norms before clipping, over all ranks; NaN
    where they are not finite."""
    for engine in engines:
        fill_gradients(engine)
    gradients = [measure_gradient(engine) for engine in engines]
    left_out = not all(math.isfinite(found.norm) for found in gradients)
    for engine, found in zip(engines, gradients, strict=True):
        with with_cached_grad_norm(engine, found, left_out):
            engine.step()
    return [found.norm if math.isfinite(found.norm) else math.nan for found in gradients]
