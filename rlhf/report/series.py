"""A metric over the steps of some stages, or over what these steps cost: samples, tokens, operations, seconds, dollars."""

import numpy as np

from rlhf.report.costs import find_price
from rlhf.report.stage import Stage
from rlhf.report.statistics import Array

# A curve has at most so many points; the steps of each are averaged.
PLACES = 200
STEP = "step"
# What a stage's steps cost so far, with the words on its axis. A stage's own cost: what came before it is not in it.
COSTS = {
    "samples": "samples",
    "tokens": "tokens",
    "flops": "FLOPs",
    "seconds": "seconds of steps",
    "dollars": "US dollars",
}
# The rate per second by which a cost grows, over all ranks; of operations that of one device.
RATES = {
    "samples": "throughput/samples_per_s",
    "tokens": "throughput/tokens_per_s",
    "flops": "throughput/tflops_per_gpu",
}
SECONDS = "time/step_s"


def trace(stages: list[Stage], metric: str, against: str = STEP) -> tuple[Array, Array]:
    """Return positions in the order of the steps, and the metric there [stages, steps], NaN where a stage has none.

    A position is the step, or at each step the stages' mean of a cost or of another metric. What the model measured that
    training started from stands at step 0, at no cost.
    """
    logged, places = [], []
    for stage in stages:
        values = stage.series.get(metric)
        known = np.isfinite(values)
        points = dict(zip(stage.series.steps[known].tolist(), values[known].tolist(), strict=True))
        if points and f"{metric}_sft" in stage.metrics:
            points[0.0] = stage.metrics[f"{metric}_sft"]
        logged.append(points)
        if against != STEP:
            found = position(stage, against)
            start = {0.0: 0.0} if np.isfinite(found).any() else {}
            places.append(dict(zip(stage.series.steps.tolist(), found.tolist(), strict=True)) | start)
    steps = sorted({step for points in logged for step in points})
    table = tabulate(logged, steps)
    if against == STEP:
        return bin_series(np.array(steps), table)
    found = np.where(np.isfinite(table), tabulate(places, steps), np.nan)
    there = np.isfinite(found).any(axis=0)
    means = np.nanmean(found[:, there], axis=0) if there.any() else np.empty(0)
    return bin_series(means, table[:, there])


def tabulate(logged: list[dict[float, float]], steps: list[float]) -> Array:
    """Return values by step as a table [stages, steps], NaN where a stage has none."""
    return np.array([[points.get(step, np.nan) for step in steps] for points in logged]).reshape(len(logged), len(steps))


def position(stage: Stage, against: str) -> Array:
    """Return what a stage's steps cost up to each of them, or another metric at each of them."""
    if against not in COSTS:
        return stage.series.get(against)
    seconds = stage.series.get(SECONDS)
    devices, price = find_price(stage)
    rate = stage.series.get(RATES[against]) if against in RATES else np.ones(len(seconds))
    factor = {"flops": 1e12 * devices, "dollars": devices * price / 3600}.get(against, 1.0)
    spent: Array = np.cumsum(np.nan_to_num(seconds * rate)) * factor
    return spent if len(spent) and spent[-1] > 0 else np.full(len(spent), np.nan)


def bin_series(positions: Array, values: Array) -> tuple[Array, Array]:
    """Average neighbouring steps, [stages, steps], so that at most PLACES columns are left."""
    if len(positions) <= PLACES:
        return positions, values
    starts = np.linspace(0, len(positions), PLACES + 1).astype(int)[:-1]
    known = np.isfinite(values)
    counts = np.add.reduceat(known, starts, axis=1, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
    widths = np.diff([*starts, len(positions)])
    means = np.where(counts, sums / np.maximum(counts, 1), np.nan)
    return np.add.reduceat(positions, starts) / widths, means
