"""How fast stages were, as totals over totals: samples of all steps over the seconds of all steps."""

from dataclasses import dataclass

import numpy as np

from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import is_benchmark
from rlhf.report.collect import Collection
from rlhf.report.final_metrics import format_short
from rlhf.report.stage import Stage

MEAN, PEAK = "time/step_s", "memory/peak_gib"


@dataclass(frozen=True, eq=False)
class Speed:
    """Speed by metric, of one stage or (means over stages, the peak of peaks) of all of a kind on one machine."""

    label: str
    device: str
    n: int
    metrics: dict[str, float]


def speeds(collection: Collection) -> tuple[list[Speed], list[Speed]]:
    """Return the speed of each kind of stage on each type of machine (a mean of benchmarks would mean nothing), and of each
    stage that has logged a step."""
    measured = [stage for stage in collection.stages if len(stage.series.steps)]
    each = [Speed(stage.name, device(stage), 1, speed(stage)) for stage in measured]
    kinds: dict[tuple[str, str], list[Speed]] = {}
    for stage, own in zip(measured, each, strict=True):
        if not is_benchmark(stage.kind):
            kinds.setdefault((stage.kind, own.device), []).append(own)
    return [combine(kind, device, members) for (kind, device), members in kinds.items()], each


def speed_metrics(stage: Stage) -> dict[str, Metric]:
    """Return the metrics of a stage that are columns of the table, by name."""
    return {name: metric for name, metric in stage.display.metrics.items() if metric.speed}


def speed(stage: Stage) -> dict[str, float]:
    """Return a stage's speed over its steps, as far as it was logged; rates are averaged over the time that they are
    per."""
    series = stage.series
    found = {"steps": float(len(series.steps))}
    for metric in speed_metrics(stage).values():
        rates, weights = series.get(metric.name), series.get(metric.per)
        known = np.isfinite(rates) & np.isfinite(weights) & (weights > 0)
        if known.any():
            found[metric.name] = float(np.average(rates[known], weights=weights[known]))
    for name, reduce in ((MEAN, np.nanmean), (PEAK, np.nanmax)):
        if np.isfinite(series.get(name)).any():
            found[name] = float(reduce(series.get(name)))
    return found


def combine(kind: str, device: str, members: list[Speed]) -> Speed:
    """Combine several stages of one kind on one type of machine: means, and the largest peak."""
    values: dict[str, list[float]] = {}
    for own in members:
        for name, value in own.metrics.items():
            values.setdefault(name, []).append(value)
    metrics = {name: max(known) if name == PEAK else sum(known) / len(known) for name, known in values.items()}
    return Speed(kind, device, len(members), metrics)


def device(stage: Stage) -> str:
    """Return what a stage ran on, as `2 × 8 × A100`: nodes, devices of each, their type."""
    hardware = stage.environment.get("hardware")
    if not isinstance(hardware, dict):
        return "unknown"
    counts = [hardware.get("nodes", 1), hardware.get("gpus_per_node", 1)]
    return " × ".join([str(count) for count in counts if count != 1] + [str(hardware.get("gpu", "unknown"))])


def format_speed(metric: Metric, value: float | None) -> str:
    """Return a cell of the table."""
    return metric.write(value) if metric.unit == "share" and value is not None else format_short(value)
