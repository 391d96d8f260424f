"""Ending an update: the gradient's norm, and the optimiser's step, unless a gradient is not finite."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


def advance(engine: Any) -> None:
    """End a micro-batch that is not the last one of its update."""
    if not engine.is_gradient_accumulation_boundary():
        engine.step()


def finish(*engines: Any) -> list[float]:
    """End an update of engines that learn together: each takes its step, or, if the gradient of one of them is not finite
    on any rank (fp16 overflows that way), none does. Returns their gradient norms before clipping, over all ranks; NaN
    where they are not finite."""
    norms = [gradient_norm(engine) for engine in engines]
    skipped = not all(math.isfinite(norm) for norm in norms)
    for engine, norm in zip(engines, norms, strict=True):
        with found(engine, math.nan if skipped else norm):
            engine.step()
    return [norm if math.isfinite(norm) else math.nan for norm in norms]


def gradient_norm(engine: Any) -> float:
    """The norm of an accumulated gradient over all ranks, its loss scale divided out."""
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):  # ZeRO 1 and 2
        return float(optimizer.scaled_global_norm()) / float(optimizer.loss_scale)
    if hasattr(optimizer, "_get_norm_groups"):  # ZeRO 3
        groups = torch.stack([torch.as_tensor(norm).float().cpu() for norm in optimizer._get_norm_groups()])
        norm = float(groups.norm()) if bool((groups >= 0).all()) else math.nan  # DeepSpeed says -1 for what is not finite
        return norm / float(optimizer.loss_scale)
    averaged = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(averaged))  # stage 0


@contextmanager
def found(engine: Any, norm: float) -> Iterator[None]:
    """Let the optimiser's step find this gradient norm: it need not compute it again, and at NaN it clears the gradient and
    leaves the weights alone, as at an overflow of its own."""
    optimizer = engine.optimizer
    with ExitStack() as stack:
        if hasattr(optimizer, "scaled_global_norm"):
            value = torch.tensor(norm * float(optimizer.loss_scale), device=engine.device)
            stack.enter_context(replaced(optimizer, "scaled_global_norm", value))
        elif hasattr(optimizer, "_get_norm_groups"):
            value = torch.tensor(norm * float(optimizer.loss_scale), device=engine.device)
            stack.enter_context(replaced(optimizer, "_get_norm_groups", [value]))
        elif not math.isfinite(norm):
            engine.module.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient
            stack.enter_context(replaced(engine, "clip_fp32_gradients", None))
        yield


@contextmanager
def replaced(owner: Any, method: str, result: Any) -> Iterator[None]:
    """A method that returns a known result."""
    setattr(owner, method, lambda *args, **kwargs: result)
    try:
        yield
    finally:
        delattr(owner, method)
