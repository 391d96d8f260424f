"""The final figures that a report compares: which, what they are called, and which direction is better."""

import math
from dataclasses import dataclass

from rlhf.catalog.metric import METRICS
from rlhf.experiment.summary import BENCH_COLUMNS
from rlhf.report.groups import Group
from rlhf.report.statistics import Estimate, estimate


@dataclass(frozen=True)
class Metric:
    """A final figure. `better` is 1 or -1 where more or less of it is better; 0 where that depends on something else, as
    with the score of a reward model that a policy may exploit."""

    kind: str
    metric: str
    label: str
    better: int = 0

    @property
    def unit(self) -> str:
        """The unit of the metric, empty if it has none."""
        return METRICS.get(self.metric, ("", ""))[0]

    @property
    def key(self) -> str:
        """The name in tables for machines."""
        return f"{self.kind} {self.metric}"


FIGURES = (
    Metric("sft", "eval/perplexity", "SFT perplexity", -1),
    Metric("reward", "eval/accuracy", "reward model accuracy", 1),
    Metric("reward", "eval/accuracy_ceiling", "… the label noise permits"),
    Metric("ppo", "eval/gold_sft", "gold reward, SFT"),
    Metric("ppo", "eval/gold", "gold reward, PPO", 1),
    Metric("ppo", "eval/reward_sft", "score, SFT"),
    Metric("ppo", "eval/reward", "score, PPO"),
    Metric("ppo", "eval/kl_sequence", "KL per response"),
    Metric("ppo", "eval/length_sft", "length, SFT"),
    Metric("ppo", "eval/length", "length, PPO"),
    *(
        Metric("bench", metric, label, -1 if metric.startswith(("time/", "memory/")) else 1)
        for metric, label, _ in BENCH_COLUMNS
    ),
)


@dataclass(frozen=True)
class Cell:
    """A figure of one group; `best` if its mean beats every other group's."""

    estimate: Estimate | None
    best: bool = False


def collect_metrics(groups: list[Group]) -> list[Metric]:
    """The figures that any group has: those of FIGURES first, then whatever else was measured."""
    present = {(kind, metric) for group in groups for point in group.points for kind, stage in point.stages.items()
               for metric in stage.figures}  # fmt: skip
    known = [figure for figure in FIGURES if (figure.kind, figure.metric) in present]
    others = sorted(present - {(figure.kind, figure.metric) for figure in known})
    return known + [Metric(kind, metric, f"{kind} {metric}") for kind, metric in others]


def compared_metrics(groups: list[Group], figure: Metric) -> list[Cell]:
    """The figure of each group, the best mean marked where there is something to compare."""
    estimates = [estimate(group.values(figure.kind, figure.metric)) for group in groups]
    means = [known.mean for known in estimates if known is not None]
    best = max(means, key=lambda mean: figure.better * mean, default=None)
    contest = figure.better != 0 and len(means) > 1 and min(means) != max(means)
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
