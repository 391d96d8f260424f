"""The page: everything a template needs, and the template filled in."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf.catalog.metric import Metric
from rlhf.catalog.state import STATES
from rlhf.config.terminal import format_dollars, format_seconds, plural
from rlhf.experiment.files import as_float
from rlhf.report import plots, statistics, throughput
from rlhf.report.collect import Collection, Point, pipeline_index
from rlhf.report.costs import Cost, add_up, cost_lines, stage_costs
from rlhf.report.failures import failures, missing
from rlhf.report.final_metrics import collect_metrics, compared_metrics, format_short
from rlhf.report.groups import Group, differing_keys, to_yaml_text
from rlhf.report.samples import compare_answers
from rlhf.report.stage import Stage
from rlhf.report.versions import versions

# Points that are named one by one where a stage is shared; more are count_names.
NAMED = 3
# The end of the year 9999: a later Unix time, as a damaged file may have it, is none.
LAST_TIME = 253_402_300_799.0


@dataclass(frozen=True)
class Legend:
    """A group's entry: its colour, and how many of its results a plot shows, of how many points."""

    label: str
    colour: str
    n: int
    points: int


def page(collection: Collection, groups: list[Group]) -> str:
    """Return the report as one HTML document that needs nothing else."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": format_short, "shown": to_yaml_text, "decimal": decimal}
    return environment.get_template("page.html").render(build_context(collection, groups))


def build_context(collection: Collection, groups: list[Group]) -> dict[str, Any]:
    """Return what the template shows, by section."""
    finals = [final for final in collect_metrics(groups) if final.is_compared]
    seed, prompts = compare_answers(groups)
    by_kind, by_stage = throughput.speeds(collection)
    keys = differing_keys([point.config for point in collection.points])
    costs = stage_costs(collection)
    return {
        "name": collection.name,
        "place": str(collection.path),
        "now": time.strftime("%Y-%m-%d %H:%M %Z"),
        "method": statistics.METHOD,
        "overview": overview(collection),
        "period": format_period(collection),
        "stages": [(cost, name_users(collection, cost.stage)) for cost in costs],
        "total": (add_up([cost.planned for cost in costs]), add_up([cost.spent for cost in costs])),
        "priced": any(cost.dollars for each in costs for cost in (each.planned, each.spent) if cost is not None),
        "cost_cells": format_cost,
        "legend": build_legend(groups, plots.count_under_way(groups)),
        "finished": build_legend(groups, [len(plots.score_pairs(group, "eval/reward")) for group in groups]),
        "curves": to_data_url(plots.curves(groups)),
        "frontier": to_data_url(plots.frontier(groups)),
        "lengths": to_data_url(plots.lengths(collection.stages)),
        "places": plots.PLACES,
        "finals": finals,
        "rows": list(zip(groups, zip(*[compared_metrics(groups, final) for final in finals], strict=True), strict=False)),
        "speed_columns": used_columns(collection, by_stage),
        "speed": throughput.format_speed,
        "by_kind": by_kind,
        "by_stage": by_stage,
        "seed": seed,
        "prompts": prompts,
        "keys": keys,
        "numeric": [key for key in keys if is_numeric([point.config.get(key) for point in collection.points])],
        "points": collection.points,
        "failures": failures(collection),
        "missing": missing(collection),
        "versions": versions(collection),
        "tones": {name: state.tone for name, state in STATES.items()},
    }


def to_data_url(svg: str | None) -> Markup | None:
    """Return a plot as markup: matplotlib has escaped the text in it."""
    return None if svg is None else Markup(svg)


def format_cost(cost: Cost | None, priced: bool) -> list[str]:
    """Return a cost as cells of a table: its time, its device-hours and, where anything has a price, its dollars."""
    if cost is None:
        return ["–"] * (3 if priced else 2)
    return [format_seconds(cost.seconds), format_short(cost.gpu_hours), *([format_dollars(cost.dollars)] if priced else [])]


def decimal(value: float | None) -> str:
    """Return a score of one answer: two decimals say enough."""
    return "–" if value is None else f"{value:.2f}"


def is_numeric(values: list[Any]) -> bool:
    """Whether all values that are set are numbers."""
    return all(as_float(value) is not None for value in values if value is not None)


def overview(collection: Collection) -> list[str]:
    """Describe the collection in a few lines: points and stages by state, time and cost beside those planned, and what
    sharing saved."""
    points = count_names([point.state for point in collection.points])
    kinds = count_names([stage.kind for stage in sorted(collection.stages, key=lambda stage: pipeline_index(stage.kind))])
    uses = sum(len(point.stages) for point in collection.points)
    lines = [
        f"{plural(len(collection.points), 'point', ',')}: {points}",
        f"{plural(len(collection.stages), 'stage', ',')}: {kinds or 'none yet'}",
    ]
    if uses > len(collection.stages):
        lines.append(f"{len(collection.stages)} stages instead of {uses}: one that several points use is run once")
    return lines + cost_lines(collection)


def count_names(names: list[str]) -> str:
    """Count how often each name occurs, as `4 done, 2 failed`."""
    return ", ".join(f"{names.count(name):,} {name}" for name in dict.fromkeys(names))


def format_period(collection: Collection) -> str | None:
    """Write the time from the first to the last step that any stage logged; None without a step."""
    times = [float(value) for stage in collection.stages for value in stage.series.get("time") if 0 < value < LAST_TIME]
    if not times:
        return None
    form = "%Y-%m-%d %H:%M"
    return f"{time.strftime(form, time.localtime(min(times)))} to {time.strftime(form, time.localtime(max(times)))}"


def name_users(collection: Collection, stage: Stage) -> list[str]:
    """Return the points that use a stage: all, a few by name, or the first of them and how many more."""
    using: list[Point] = collection.users(stage)
    if len(using) == len(collection.points) > 1:
        return [f"all {len(using)} points"]
    names = [point.name for point in using]
    return names if len(names) <= NAMED else [*names[: NAMED - 1], f"and {len(names) - NAMED + 1} more"]


def build_legend(groups: list[Group], shown: list[int]) -> list[Legend]:
    """Return the groups with their colours; `shown` is of how many results a plot has something, per group."""
    return [
        Legend(group.label, colour, n, len(group.points))
        for group, colour, n in zip(groups, plots.colours(len(groups)), shown, strict=True)
    ]


def used_columns(collection: Collection, speeds: list[throughput.Speed]) -> list[Metric]:
    """Return the metrics of speed that any stage has logged, the memory last."""
    known = {name: metric for stage in collection.stages for name, metric in throughput.speed_metrics(stage).items()}
    used = [name for name in known if any(name in speed.metrics for speed in speeds)]
    return [known[name] for name in sorted(used, key=lambda name: name == throughput.PEAK)]
