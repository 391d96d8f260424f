"""Learning rates as a function of the step: nothing to save, nothing to restore."""

import math


def learning_rate(step: int, total: int, peak: float, warmup: int, schedule: str) -> float:
    """Return the rate of update `step` (from 0) of `total`: linear warm-up over `warmup` updates, then constant, or linear
    or half a cosine down to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return peak * (1.0 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak
