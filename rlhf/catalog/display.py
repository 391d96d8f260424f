"""What people are shown of a stage: its metrics with labels and units, and the sides of its samples.

Status and reports may be of runs of other people. Of a stage that is not in this package they import nothing: what its kind
declares is written beside its results (DISPLAY_FILE), and read from there.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import Side, kind_of, metrics_of, packages

DISPLAY_FILE = "display.json"
# How a value may be written: a file cannot ask for a text of a billion characters.
FORMAT = re.compile(r"\{:,?\.\d[efg%]\}")


@dataclass(frozen=True)
class Display:
    """How the results of a kind of stage are shown.

    Attributes:
        metrics: Its metrics by name, in the order of tables.
        headline: The metrics that say most about it while it runs, the first before the others.
        compared: The sets of metrics that the terminal shows of a report, the first before the others.
        sides: The responses of a row of its samples.jsonl.
        step: What one of its steps is called on an axis.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    headline: tuple[str, ...] = ()
    compared: tuple[tuple[str, ...], ...] = ()
    sides: tuple[Side, ...] = ()
    step: str = "step"

    def final(self, detail: int = 2) -> list[Metric]:
        """Return the final metrics up to a level of detail: 0 for a sweep's table, 1 for a report, 2 for the table of one
        run."""
        return [metric for metric in self.metrics.values() if metric.final and metric.detail <= detail]


@cache
def display_of(stage: str) -> Display:
    """Read from a stage's kind how its results are shown. Raises ImportError or AttributeError where there is no kind."""
    kind, metrics = kind_of(stage), metrics_of(stage)
    display = Display(metrics, kind.headline or tuple(metric.name for metric in kind.metrics), (), kind.sides, kind.step)
    compared = kind.compared or (tuple(metric.name for metric in display.final(detail=0)),)
    return Display(metrics, display.headline, compared, kind.sides, kind.step)


def share_columns(
    measured: Iterable[tuple[str, Metric]], points: Sequence[Mapping[str, Container[str]]]
) -> list[tuple[tuple[str, ...], Metric]]:
    """Return the columns of a table of points, each with the stages that it is of. Stages that have a metric in common
    share its column, as those of two algorithms do, unless a point has it of several.

    Args:
        measured: The metrics, in their order, with the stage that each is of.
        points: The names of the metrics that each point has, by stage.
    """
    stages: dict[Metric, list[str]] = {}
    for stage, metric in measured:
        stages.setdefault(metric, []).append(stage)
    columns: list[tuple[tuple[str, ...], Metric]] = []
    for metric, own in stages.items():
        is_shared = all(sum(metric.name in point.get(stage, ()) for stage in own) < 2 for point in points)
        columns += [(tuple(own), metric)] if is_shared else [((stage,), metric) for stage in own]
    return columns


def is_in_package(stage: str) -> bool:
    """Whether the stage is one of this package's, whose kind anybody can read."""
    return stage in packages()


def to_json(display: Display) -> dict[str, Any]:
    """Return what a display file holds."""
    return asdict(display) | {"metrics": [asdict(metric) for metric in display.metrics.values()]}


def from_json(found: Mapping[str, Any]) -> Display:
    """Return the display that a file holds; entries that are none are left out."""
    metrics = [metric for entry in as_list(found.get("metrics")) if (metric := parse_metric(entry)) is not None]
    sides = [(entry.get("key"), entry.get("label")) for entry in as_list(found.get("sides")) if isinstance(entry, dict)]
    step = found.get("step")
    return Display(
        {metric.name: metric for metric in metrics},
        as_names(found.get("headline")),
        tuple(as_names(names) for names in as_list(found.get("compared"))),
        tuple(Side(key, label) for key, label in sides if isinstance(key, str) and isinstance(label, str)),
        step if isinstance(step, str) else "step",
    )


def parse_metric(entry: Any) -> Metric | None:
    """Return the metric of an entry; None if it is none, as in a file that is damaged or of another version."""
    kinds = {known.name: known.type for known in fields(Metric)}
    if not isinstance(entry, dict) or not {"name", "unit", "description"} <= set(entry) <= set(kinds):
        return None
    if any(type(value) is not kinds[key] for key, value in entry.items()):
        return None
    metric = Metric(**entry)
    return metric if FORMAT.fullmatch(metric.format) else None


def as_list(value: Any) -> list[Any]:
    """Return a list, empty if it is none."""
    return value if isinstance(value, list) else []


def as_names(value: Any) -> tuple[str, ...]:
    """Return the texts of a list."""
    return tuple(name for name in as_list(value) if isinstance(name, str))
