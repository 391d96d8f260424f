"""The final metrics that a report compares, and how good each group's are."""

import math
from dataclasses import dataclass, replace

from rlhf.catalog.display import share_columns
from rlhf.catalog.metric import Metric
from rlhf.report.collect import pipeline_index
from rlhf.report.groups import Group
from rlhf.report.statistics import Estimate, estimate, normal_p, paired_p, root_mean_square, welch_p

SIGNIFICANT = 0.05
TEST = (
    "A mean is green only if it is distinguishable: better than each other group by Welch's t-test over seeds (two seeds "
    f"or more on each side; two-sided p times the number of other groups at most {SIGNIFICANT}), and better than the model "
    "that training started from by a paired t-test over seeds, where that model was measured."
)


@dataclass(frozen=True)
class FinalMetric:
    """A metric of the result of one kind of stage, or of several that no point has together, as those of two algorithms."""

    kinds: tuple[str, ...]
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
        return f"{'/'.join(self.kinds)} {self.name}"

    def values(self, group: Group, name: str) -> list[float]:
        """Return a metric of the stages of a group that are of its kinds, as far as they have it."""
        return [value for kind in self.kinds for value in group.values(kind, name)]


@dataclass(frozen=True)
class Gain:
    """How far a group's mean is above that of the models that its runs started from, with the p-value of no difference
    (None where no test says anything) and what the test runs over."""

    mean: float
    p: float | None
    test: str

    def is_better(self, direction: int) -> bool:
        """Whether the group is distinguishable from its start, in the direction in which the metric is better."""
        return self.p is not None and self.p <= SIGNIFICANT and direction * self.mean > 0


@dataclass(frozen=True)
class Cell:
    """A metric of one group.

    Attributes:
        estimate: Its mean over seeds, with the interval; None without a value.
        error: The standard error over held-out prompts of one run's mean; None where the runs have none.
        gain: How far it is above its start; None where the stage does not measure its start.
        p: Of the group with the best mean: the largest p-value against another group, times their number.
        best: Whether the mean is the best and distinguishable from every other group's and from its start's.
    """

    estimate: Estimate | None
    error: float | None = None
    gain: Gain | None = None
    p: float | None = None
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
    points = [{s.kind: s.metrics for s in point.stages.values()} for group in groups for point in group.points]
    measured = sorted(known, key=lambda entry: (pipeline_index(entry[0]), entry[0], order[entry]))
    columns = share_columns([(kind, known[kind, name]) for kind, name in measured], points)
    finals = [FinalMetric(kinds, metric) for kinds, metric in columns]
    others = sorted((final for final in finals if not final.is_compared), key=lambda final: (final.kinds, final.name))
    return sorted((final for final in finals if final.is_compared), key=lambda final: first_place(final, order)) + others


def first_place(final: FinalMetric, order: dict[tuple[str, str], int]) -> tuple[int, str, int]:
    """Return where a metric stands: by its first stage in the pipeline, and as that declares its metrics."""
    kind = final.kinds[0]
    return pipeline_index(kind), kind, order[kind, final.name]


def compared_metrics(groups: list[Group], final: FinalMetric) -> list[Cell]:
    """Return the metric of each group. The best mean is marked if it is distinguishable (TEST)."""
    values = [final.values(group, final.name) for group in groups]
    cells = [
        Cell(estimate(known), prompt_error(group, final), measure_gain(group, final) if known else None)
        for group, known in zip(groups, values, strict=True)
    ]
    known = [number for number, cell in enumerate(cells) if cell.estimate is not None]
    if final.metric.better == 0 or len(known) < 2:
        return cells
    first = max(known, key=lambda number: final.metric.better * math.fsum(values[number]) / len(values[number]))
    ps = [welch_p(values[first], values[number]) for number in known if number != first]
    p = None if None in ps else min(1.0, len(ps) * max(p for p in ps if p is not None))
    leader = cells[first]
    is_best = p is not None and p <= SIGNIFICANT and (leader.gain is None or leader.gain.is_better(final.metric.better))
    cells[first] = replace(leader, p=p, best=is_best)
    return cells


def prompt_error(group: Group, final: FinalMetric) -> float | None:
    """Return the standard error over prompts of one of a group's runs; None where no run has any."""
    return root_mean_square(final.values(group, f"{final.name}_se"))


def measure_gain(group: Group, final: FinalMetric) -> Gain | None:
    """Compare a group with the models that its runs started from: over seeds by differences within each, for one seed over
    prompts, as if the two answered prompts of their own, which makes the p-value too large rather than too small."""
    start = f"{final.name}_sft"
    stages = [stage for kind in final.kinds for stage in group.stages(kind)]
    runs = [stage.metrics for stage in stages if {final.name, start} <= set(stage.metrics)]
    if not runs:
        return None
    differences = [metrics[final.name] - metrics[start] for metrics in runs]
    mean = math.fsum(differences) / len(differences)
    if len(differences) > 1:
        return Gain(mean, paired_p(differences), f"n={len(differences)} seeds")
    errors = [runs[0].get(f"{name}_se") for name in (final.name, start)]
    known = [error for error in errors if error is not None]
    return Gain(mean, normal_p(mean, math.hypot(*known)) if len(known) == 2 else None, "prompts of one run")


def format_p(p: float | None) -> str:
    """Write a p-value; `no test` where there is none."""
    return "no test" if p is None else "p<0.001" if p < 0.001 else f"p={p:.2g}"


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
