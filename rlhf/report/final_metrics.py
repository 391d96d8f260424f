"""The final metrics that a report compares, and how good each group's are."""

import math
from dataclasses import dataclass

from rlhf.catalog.metric import Metric
from rlhf.report.collect import pipeline_index
from rlhf.report.groups import Group
from rlhf.report.statistics import Estimate, estimate


@dataclass(frozen=True)
class FinalMetric:
    """A metric of the result of one kind of stage."""

    kind: str
    metric: Metric

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric.name

    @property
    def is_compared(self) -> bool:
        """Whether people compare it."""
        return self.metric.final and self.metric.detail <= 1

    @property
    def label(self) -> str:
        """The heading of its column, with the unit where people need it."""
        return self.metric.with_unit(self.metric.heading)

    @property
    def key(self) -> str:
        """The name in tables for machines."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Cell:
    """A metric of one group; `best` if its mean beats every other group's."""

    estimate: Estimate | None
    best: bool = False


def collect_metrics(groups: list[Group]) -> list[FinalMetric]:
    """Return the final metrics that any group has: those that people compare first, by stage, then whatever else was
    measured. A metric that its stage does not declare, as one of another version of this program, has neither unit nor
    direction."""
    known: dict[tuple[str, str], Metric] = {}
    order: dict[tuple[str, str], int] = {}
    for stage in (stage for group in groups for point in group.points for stage in point.stages.values()):
        declared = list(stage.display.metrics)
        for name in stage.metrics:
            metric = stage.display.metrics.get(name) or Metric(name, "", "", f"{stage.kind} {name}")
            known.setdefault((stage.kind, name), metric)
            order.setdefault((stage.kind, name), declared.index(name) if name in declared else len(declared))
    finals = [FinalMetric(kind, metric) for (kind, _), metric in known.items()]
    compared = [final for final in finals if final.is_compared]
    others = sorted((final for final in finals if not final.is_compared), key=lambda f: (f.kind, f.name))
    return sorted(compared, key=lambda f: (pipeline_index(f.kind), f.kind, order[f.kind, f.name])) + others


def compared_metrics(groups: list[Group], final: FinalMetric) -> list[Cell]:
    """Return the metric of each group; the best mean is marked where there are two groups or more."""
    estimates = [estimate(group.values(final.kind, final.name)) for group in groups]
    means = [known.mean for known in estimates if known is not None]
    best = max(means, key=lambda mean: final.metric.better * mean, default=None)
    contest = final.metric.better != 0 and len(means) > 1 and min(means) != max(means)
    return [Cell(known, contest and known is not None and known.mean == best) for known in estimates]


def format_short(value: float | None) -> str:
    """Return a number with three significant digits, as people write it; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    rounded = float(f"{value:.2e}")
    size = abs(rounded)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.2e}"
    decimals = 2 if size == 0 else max(0, 2 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:,.{decimals}f}"
