"""The tables beside the page: of points, of stages, and of groups over seeds; each as CSV, JSON and Markdown.

CSV and JSON have every metric in full, Markdown what people compare in three digits.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any

from rlhf.config.terminal import make_printable
from rlhf.experiment.store import write_atomic
from rlhf.report.collect import Collection, Point
from rlhf.report.costs import cost_rows
from rlhf.report.final_metrics import Cell, FinalMetric, collect_metrics, compared_metrics, format_short
from rlhf.report.groups import Group, differing_keys, to_yaml_text

Rows = list[dict[str, Any]]


def write_tables(output: Path, collection: Collection, groups: list[Group]) -> list[Path]:
    """Write the tables in three formats; returns the files."""
    finals = collect_metrics(groups)
    points, summary = point_rows(collection, groups, finals), group_rows(groups, finals)
    stages = cost_rows(collection)
    contents = {
        "points.csv": as_csv(points),
        "points.json": as_json(points),
        "points.md": as_markdown(format_points(points, finals)),
        "stages.csv": as_csv(stages),
        "stages.json": as_json(stages),
        "stages.md": as_markdown(format_stages(stages)),
        "table.csv": as_csv(summary),
        "table.json": as_json(summary),
        "table.md": as_markdown(format_groups(groups, finals)),
    }
    for name, content in contents.items():
        save(output / name, content)
    return [output / name for name in contents]


def save(file: Path, content: str) -> None:
    """Write text of any origin; what steers a terminal, and half a character, as JSON allows it, is shown instead."""
    write_atomic(file, make_printable(content))


def point_rows(collection: Collection, groups: list[Group], finals: list[FinalMetric]) -> Rows:
    """Return a row per point: what sets it apart, its state, and its final metrics (none where there is none yet)."""
    labels = {point.path: group.label for group in groups for point in group.points}
    keys = differing_keys([point.config for point in collection.points])
    return [
        {"point": point.name, "state": point.state, "group": labels[point.path], "seed": point.seed}
        | {key: point.config.get(key) for key in keys if key != "seed"}
        | {final.key: metric_value(point, final) for final in finals}
        for point in collection.points
    ]


def metric_value(point: Point, final: FinalMetric) -> float | None:
    """Return a point's final metric."""
    found = (point.stages[kind].metrics.get(final.name) for kind in final.kinds if kind in point.stages)
    return next((value for value in found if value is not None), None)


def group_rows(groups: list[Group], finals: list[FinalMetric]) -> Rows:
    """Return a row per group and metric: over how many seeds, the mean and its interval over seeds, the standard error over
    prompts of one run, the p-value of the best group against the others, and the gain over the start with its p-value."""
    cells = {final: compared_metrics(groups, final) for final in finals}
    return [
        {"group": group.label, "stage": "/".join(kind for kind in final.kinds if kind in group.kinds)}
        | {"metric": final.name, "unit": final.metric.unit}
        | {"n": known.n, "mean": known.mean, "low": known.low, "high": known.high, "best": cell.best}
        | {"se_prompts": cell.error, "p_others": cell.p}
        | {"gain": None if cell.gain is None else cell.gain.mean, "p_gain": None if cell.gain is None else cell.gain.p}
        for number, group in enumerate(groups)
        for final in finals
        if (known := (cell := cells[final][number]).estimate) is not None
    ]


def format_points(rows: Rows, finals: list[FinalMetric]) -> Rows:
    """Return the points with the metrics that people compare."""
    names = {final.key: final.label for final in finals if final.is_compared}
    others = [key for key in rows[0] if " " not in key]
    return [
        {key: row[key] for key in others} | {names[key]: format_short(row[key]) for key in names if key in row}
        for row in rows
    ]


def format_stages(rows: Rows) -> Rows:
    """Return the stages with their costs in three digits."""
    return [{key: format_short(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def format_groups(groups: list[Group], finals: list[FinalMetric]) -> Rows:
    """Return a row per group, a column per metric that people compare."""
    columns = {final: compared_metrics(groups, final) for final in finals if final.is_compared}
    return [
        {"group": group.label, "points": len(group.points)}
        | {final.label: format_words(cells[number]) for final, cells in columns.items()}
        for number, group in enumerate(groups)
    ]


def format_words(cell: Cell) -> str:
    """Mean, interval and n; the best in bold, if it is distinguishable."""
    known = cell.estimate
    if known is None:
        return "–"
    mean = f"**{format_short(known.mean)}**" if cell.best else format_short(known.mean)
    interval = "" if known.low is None else f" [{format_short(known.low)}, {format_short(known.high)}]"
    return f"{mean}{interval}, n={known.n}"


def as_csv(rows: Rows) -> str:
    """Rows under a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(list(rows[0]) if rows else [])
    writer.writerows([["" if value is None else format_plain(value) for value in row.values()] for row in rows])
    return stream.getvalue()


def format_plain(value: Any) -> Any:
    """Return a value as a CSV cell: numbers and text as they are, others as YAML people write them."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else to_yaml_text(value)


def as_json(rows: Rows) -> str:
    """Return a list of objects."""
    return json.dumps(rows, indent=2, default=str) + "\n"


def as_markdown(rows: Rows) -> str:
    """Return a table; numbers need no alignment to be read as text."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *[[cell(value) for value in row.values()] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(value: Any) -> str:
    """Text that stays in its cell and brings no markup along."""
    text = "" if value is None else " ".join(to_yaml_text(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
