"""The final figures that a report compares, and how good each group's are."""

import math
from dataclasses import dataclass

from rlhf.catalog.metric import METRICS, Metric, final_metrics
from rlhf.report.groups import Group
from rlhf.report.statistics import Estimate, estimate


@dataclass(frozen=True)
class Figure:
    """A final figure: a metric of the result of one kind of stage."""

    kind: str
    metric: str

    @property
    def known(self) -> Metric:
        """The metric's entry; one without a unit or a direction for a metric that another version of this program wrote."""
        return METRICS.get(self.metric) or Metric(self.metric, "", "", f"{self.kind} {self.metric}")

    @property
    def label(self) -> str:
        """What stands above its column, with its unit where people need it."""
        return self.known.with_unit(self.known.heading)

    @property
    def key(self) -> str:
        """The name in tables for machines."""
        return f"{self.kind} {self.metric}"


# The figures that people compare.
FIGURES = tuple(Figure(metric.final, metric.name) for metric in final_metrics(detail=1))


@dataclass(frozen=True)
class Cell:
    """A figure of one group; `best` if its mean beats every other group's."""

    estimate: Estimate | None
    best: bool = False


def collect_metrics(groups: list[Group]) -> list[Figure]:
    """The figures that any group has: those of FIGURES first, then whatever else was measured."""
    present = {(kind, metric) for group in groups for point in group.points for kind, stage in point.stages.items()
               for metric in stage.figures}  # fmt: skip
    known = [figure for figure in FIGURES if (figure.kind, figure.metric) in present]
    others = sorted(present - {(figure.kind, figure.metric) for figure in known})
    return known + [Figure(kind, metric) for kind, metric in others]


def compared_metrics(groups: list[Group], figure: Figure) -> list[Cell]:
    """The figure of each group, the best mean marked where there is something to compare."""
    estimates = [estimate(group.values(figure.kind, figure.metric)) for group in groups]
    means = [known.mean for known in estimates if known is not None]
    best = max(means, key=lambda mean: figure.known.better * mean, default=None)
    contest = figure.known.better != 0 and len(means) > 1 and min(means) != max(means)
    return [Cell(known, contest and known is not None and known.mean == best) for known in estimates]


def format_short(value: float | None) -> str:
    """A number with three significant digits, as people write it; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    rounded = float(f"{value:.2e}")
    size = abs(rounded)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.2e}"
    decimals = 2 if size == 0 else max(0, 2 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:,.{decimals}f}"
