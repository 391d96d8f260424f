"""The page: everything a template needs, and the template filled in."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf.catalog.metric import Metric
from rlhf.catalog.state import STATES
from rlhf.config.pages import make_environment
from rlhf.config.terminal import format_dollars, format_seconds, plural
from rlhf.experiment.files import as_float
from rlhf.report import statistics, throughput
from rlhf.report.collect import Collection, pipeline_index
from rlhf.report.costs import Cost, add_up, cost_lines, stage_costs
from rlhf.report.drawing import Drawing, write_svg
from rlhf.report.failures import failures, missing
from rlhf.report.final_metrics import TEST, collect_metrics, compared_metrics, format_p, format_short
from rlhf.report.groups import Group, differing_keys, to_yaml_text
from rlhf.report.looks import Entry
from rlhf.report.panels.panel import Panel, View
from rlhf.report.samples import compare_answers
from rlhf.report.versions import versions

# The end of the year 9999: a later Unix time, as a damaged file may have it, is none.
LAST_TIME = 253_402_300_799.0


def page(view: View, panels: list[Panel], refresh: int = 0) -> str:
    """Return the report as one HTML document that needs nothing else; a browser loads it anew every `refresh` seconds."""
    environment = make_environment(Path(__file__).parent)
    environment.filters |= {
        "short": format_short,
        "shown": to_yaml_text,
        "decimal": decimal,
        "p": format_p,
        "cell": format_cell,
    }
    return environment.get_template("page.html").render(build_context(view, panels) | {"refresh": refresh})


def build_context(view: View, panels: list[Panel]) -> dict[str, Any]:
    """Return what the template shows, by section."""
    collection, groups = view.collection, view.groups
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
        "test": TEST,
        "overview": overview(collection),
        "period": format_period(collection),
        "stages": [(cost, collection.name_users(cost.stage)) for cost in costs],
        "total": (add_up([cost.planned for cost in costs]), add_up([cost.spent for cost in costs])),
        "priced": any(cost.dollars for each in costs for cost in (each.planned, each.spent) if cost is not None),
        "cost_cells": format_cost,
        "groups": groups,
        "looks": view.design.looks,
        "legend": view.design.legend,
        "counts": partial(count_shown, groups),
        "design_key": view.design.key,
        "panels": panels,
        "svg": draw,
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


def count_shown(groups: list[Group], entry: Entry, shown: list[int]) -> tuple[int, int]:
    """Return how many results an entry of a legend has in a drawing, and how many points."""
    return sum(shown[number] for number in entry.groups), sum(len(groups[number].points) for number in entry.groups)


def draw(drawing: Drawing) -> Markup:
    """Return a drawing as markup: matplotlib has escaped the text in it."""
    return Markup(write_svg(drawing))


def format_cell(value: Any) -> str:
    """Return a cell of a panel's table: a number with three digits, anything else as text."""
    return format_short(value) if isinstance(value, float) else "–" if value is None else str(value)


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
    """Describe the collection in a few lines: points and stages by state, alarms, time and cost beside those planned, and
    what sharing saved."""
    points = count_names([point.state for point in collection.points])
    kinds = count_names([stage.kind for stage in sorted(collection.stages, key=lambda stage: pipeline_index(stage.kind))])
    uses = sum(len(point.stages) for point in collection.points)
    lines = [
        f"{plural(len(collection.points), 'point', ',')}: {points}",
        f"{plural(len(collection.stages), 'stage', ',')}: {kinds or 'none yet'}",
    ]
    if uses > len(collection.stages):
        lines.append(f"{len(collection.stages)} stages instead of {uses}: one that several points use is run once")
    alarms = [(stage, alarm.name) for stage in collection.stages for alarm in stage.alarms]
    if alarms:
        told = f"{plural(len(alarms), 'alarm')} on {plural(len({stage for stage, _ in alarms}), 'stage')}"
        lines.append(f"{told}: {count_names([name for _, name in alarms])}")
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


def used_columns(collection: Collection, speeds: list[throughput.Speed]) -> list[Metric]:
    """Return the metrics of speed that any stage has logged, the memory last."""
    known = {name: metric for stage in collection.stages for name, metric in throughput.speed_metrics(stage).items()}
    used = [name for name in known if any(name in speed.metrics for speed in speeds)]
    return [known[name] for name in sorted(used, key=lambda name: name == throughput.PEAK)]
