"""The table that a sweep ends with: a row per point, and the columns that matter most where not all fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from rlhf.catalog.display import display_of, share_columns
from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import order_stages, pipeline_parts
from rlhf.config.fitted_table import fit_table
from rlhf.config.terminal import plural, tell_apart
from rlhf.experiment.summary import count_losses, drop_measured_twice, print_pages
from rlhf.experiment.sweep import Outcome, Point, metrics_by_stage, read_summary_metrics, state_without_result

# The columns of the points and of the states of what has no result.
POINT, STATE = "point", ""
# Final metrics by stage, of each point by its name.
Results = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Column:
    """A metric of one stage, or of several that no point has together, under a heading that no other column has."""

    stages: tuple[str, ...]
    metric: Metric
    heading: str

    def write(self, found: Mapping[str, Mapping[str, float]]) -> str:
        """Write the metric of a point, whose metrics by stage are `found`; empty where the point has none."""
        values = (found[stage][self.metric.name] for stage in self.stages if self.metric.name in found.get(stage, {}))
        value = next(values, None)
        return "" if value is None else self.metric.write(value)


def print_sweep(points: list[Point], outcomes: dict[str, Outcome], console: Console) -> None:
    """Print a row per point: its final metrics, or how it ended without. What all points share stands below the table once,
    and so do the names of columns that the console has no room for."""
    results: Results = {
        point.name: drop_measured_twice(point.stages, metrics_by_stage(point, outcomes)) for point in points
    }
    if not any(results.values()) and not any(outcome.state in ("failed", "stopped") for outcome in outcomes.values()):
        return  # all submitted
    columns, shared = list_columns(results), list_shared(points)
    own = [column for column in columns if not shared.issuperset(column.stages)]
    labels = tell_apart(list(results))
    rows = [
        {POINT: labels[point.name]}
        | {column.heading: column.write(results[point.name]) for column in own}
        | {STATE: describe_states(point, outcomes)}
        for point in points
    ]
    least = [column.heading for column in sorted(own, key=rank, reverse=True)]
    table, left_out = fit_table("Result", rows, console.width, text=(STATE,), folded=(POINT,), least=least)
    console.print(table)
    if told := describe_shared([column for column in columns if column not in own], results):
        console.print(Text(f"the same in all {plural(len(points), 'point')}: {told}"))
    if left_out:
        names = "; ".join(left_out)
        console.print(Text(f"left out at {console.width} columns: {names}; a wider terminal and the report have them"))
    nodes = {node.fingerprint: node for point in points for node in point.stages if outcomes[node.fingerprint].good}
    losses = [count_losses(node.stage, read_summary_metrics(node)) for node in nodes.values()]
    for line in dict.fromkeys(f"{label}: {found}" for rows in losses for label, found in rows.items()):
        console.print(line, soft_wrap=True, highlight=False)
    print_pages(list(nodes.values()), console)
    console.print(Text(f"python -m rlhf report {points[0].directory.parent}"), soft_wrap=True)


def list_columns(results: Results) -> list[Column]:
    """Return the columns that any of the points has a value for; those of one heading name their stages too."""
    stages = order_stages(stage for found in results.values() for stage in found)
    measured = [
        (stage, metric)
        for stage in stages
        for metric in display_of(stage).final(detail=0)
        if any(metric.name in found.get(stage, {}) for found in results.values())
    ]
    columns = share_columns(measured, list(results.values()))
    headings = Counter(metric.heading for _, metric in columns)
    return [
        Column(own, metric, metric.heading + (f", {', '.join(own)}" if headings[metric.heading] > 1 else ""))
        for own, metric in columns
    ]


def list_shared(points: Sequence[Point]) -> set[str]:
    """Return the stages that all points of several have in common, and so with the same metrics."""
    own = [{(node.stage, node.fingerprint) for node in point.stages if not node.changes} for point in points]
    return {stage for stage, _ in set.intersection(*own)} if len(points) > 1 else set()


def rank(column: Column) -> tuple[int, int, int]:
    """Return how important a column is, the most important first: those of the last part of a pipeline, which all others
    lead to, and of a stage those that it is compared by."""
    stage = column.stages[0]
    part = next(number for number, stages in enumerate(pipeline_parts(column.stages)) if stage in stages)
    display = display_of(stage)
    compared = list(dict.fromkeys(name for names in display.compared for name in names))
    name, finals = column.metric.name, [metric.name for metric in display.final()]
    return part, compared.index(name) if name in compared else len(compared), finals.index(name)


def describe_states(point: Point, outcomes: dict[str, Outcome]) -> str:
    """Return how the stages of a point ended that have no result."""
    ended = [(node, outcomes[node.fingerprint]) for node in point.stages]
    return ", ".join(f"{node.stage} {state}" for node, outcome in ended if (state := state_without_result(node, outcome)))


def describe_shared(columns: Sequence[Column], results: Results) -> str:
    """Return the metrics of stages that all points share, by stage."""
    told: dict[str, list[str]] = {}
    for column in columns:
        written = next(filter(None, map(column.write, results.values())))
        told.setdefault(column.stages[0], []).append(f"{column.metric.heading} {written}")
    return "; ".join(f"{', '.join(own)} ({stage})" for stage, own in told.items())
