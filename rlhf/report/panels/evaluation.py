"""What evaluations of policies found: metrics with intervals, who wins against whom, curves of best-of-n, and subsets.
Evaluations that ask something else than those of the points stand below these."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import metrics_of
from rlhf.evaluation.statistics import Estimate
from rlhf.evaluation.summary import BY_SUBSET
from rlhf.report.asked import KIND, Asked, list_asked
from rlhf.report.drawing import AXIS, INK, Drawing, add_title
from rlhf.report.evaluations import (
    Answers,
    Curves,
    Rate,
    compare_groups,
    estimate_curves,
    estimate_metric,
    estimate_subsets,
    read_group,
)
from rlhf.report.final_metrics import SIGNIFICANT
from rlhf.report.groups import Group
from rlhf.report.looks import PALETTE, SHAPES, SHARED, Look
from rlhf.report.panels.panel import Panel, PanelTable, View
from rlhf.report.stage import Stage

# The metrics that are drawn.
MAIN = ("eval/gold", "eval/reward", "eval/kl_sequence", "eval/length")
# Groups whose answers are read and compared in pairs, at most.
MOST = 12
# Sets of evaluations beside those of the points, at most.
MOST_ASKED = 6
WIN, LOSS = PALETTE[0], PALETTE[1]
# Inches of a line of a group's label, and of a cell of the matrix of win rates.
LINE, CELL = 0.17, (0.72, 0.42)
# Groups of which two matrices stand side by side.
NARROW = 4
NOTE = (
    "Brackets and bars are 95% intervals: of one seed over its prompts, of several over the seeds by Student's t. A win "
    "rate is how often the group of the row wins against that of the column, a tie half a win; it is coloured only where "
    "the two can be told apart: p, of one seed by the sign test over prompts, of several by the t-test over seeds, times "
    f"the number of pairs is at most {SIGNIFICANT}. Best of n is the unbiased estimate from each prompt's answers."
)
MANY = " Of more than {most} groups answers are not compared: python -m rlhf evaluate DIR... compares those that you name."

BY_HAND = (
    " What has a title of its own was asked by `python -m rlhf evaluate`, or by another sweep, of policies of this one; "
    "the title says in what it differs from the configuration here."
)
OLDER = " Shown are the newest {most} of {all} such sets."
OTHERS = " Grey are policies that are no point's last one, as that which training started from."


def make_panel(view: View) -> Panel | None:
    """Make the panel of evaluations; None where none is done."""
    found = [one for one in list_asked(view.collection, view.groups) if any(map(list_done, one.groups))]
    if not found:
        return None
    composed = [one for one in found if not one.told]
    asked = composed + found[len(composed) :][-MOST_ASKED:]
    drawings, tables = [], []
    for number, one in enumerate(asked, start=1 - len(composed)):
        drawn, listed = describe_asked(view, one)
        drawings += [name_drawing(drawing, one.told, number) for drawing in drawn]
        tables += [name_table(table, one.told, number) for table in listed]
    shown = [max(len(list_done(one.groups[number])) for one in asked) for number in range(len(view.groups))]
    note = NOTE + (MANY.format(most=MOST) if sum(map(bool, shown)) > MOST else "")
    note += BY_HAND if any(one.told for one in asked) else ""
    note += OLDER.format(most=MOST_ASKED, all=len(found) - len(composed)) if len(asked) < len(found) else ""
    return Panel(
        "evaluation", "Evaluation", drawings, tables, shown, note + (OTHERS if any(one.others for one in asked) else "")
    )


def list_done(group: Group) -> list[Stage]:
    """Return the evaluations of a group that are done."""
    return [stage for stage in group.stages(KIND) if stage.state == "done"]


def describe_asked(view: View, asked: Asked) -> tuple[list[Drawing], list[PanelTable]]:
    """Return the drawings and the tables of evaluations that ask the same."""
    looks = [Look(SHARED, *SHAPES[number % len(SHAPES)]) for number, _ in enumerate(asked.others)]
    groups = [*asked.groups, *asked.others]
    view = replace(view, groups=groups, design=replace(view.design, looks=[*view.design.looks, *looks]))
    stages = [list_done(group) for group in groups]
    evaluated = [number for number, own in enumerate(stages) if own]
    known = find_metrics([stage for own in stages for stage in own])
    found = {
        name: {number: one for number in evaluated if (one := estimate_metric(stages[number], name)) is not None}
        for name in known
    }
    compared = evaluated if len(evaluated) <= MOST else []
    answers = {number: rows for number in compared if (rows := read_group(view.groups[number]))}
    rates = list(compare_groups(answers))
    curves = {number: lines for number, rows in answers.items() if (lines := estimate_curves(rows))}
    drawings = [draw_metrics(view, known, found), *draw_matrices(view, rates), *draw_best_of_n(view, curves)]
    return drawings, [metrics_table(view, known, found), *pairs_tables(view, rates), *subset_tables(view, answers)]


def name_drawing(drawing: Drawing, told: str, number: int) -> Drawing:
    """Return a drawing under the name of what was asked, where that is not what the points' own evaluations ask."""
    return add_title(replace(drawing, name=f"{drawing.name}-{number}"), told) if told else drawing


def name_table(table: PanelTable, told: str, number: int) -> PanelTable:
    """Return a table under the name of what was asked, where that is not what the points' own evaluations ask."""
    return replace(table, name=f"{table.name}-{number}", heading=f"{table.heading}: {told}") if told else table


def find_metrics(stages: Sequence[Stage]) -> dict[str, Metric]:
    """Return the final metrics that any of some evaluations has, by name, without standard errors."""
    declared = metrics_of(KIND) | {name: metric for stage in stages for name, metric in stage.display.metrics.items()}
    return {
        name: metric
        for name, metric in declared.items()
        if metric.final and not name.endswith("_se") and any(name in stage.metrics for stage in stages)
    }


def write(found: Estimate | None, metric: Metric) -> str:
    """Write an estimate with its interval; a dash where there is none."""
    if found is None:
        return "–"
    form = metric.format.format
    ends = "" if found.low is None or found.high is None else f" [{form(found.low)}, {form(found.high)}]"
    return form(found.mean) + ends


def metrics_table(view: View, known: Mapping[str, Metric], found: Mapping[str, Mapping[int, Estimate]]) -> PanelTable:
    """Return a row per group and a column per metric."""
    numbers = sorted({number for own in found.values() for number in own})
    rows = [
        {"group": view.groups[number].label}
        | {metric.with_unit(metric.heading): write(found[name].get(number), metric) for name, metric in known.items()}
        for number in numbers
    ]
    return PanelTable("evaluation", "Metrics of each group", rows)


def draw_metrics(view: View, known: Mapping[str, Metric], found: Mapping[str, Mapping[int, Estimate]]) -> Drawing:
    """Return the drawing of the main metrics, side by side."""
    names = [name for name in MAIN if name in known] or list(known)[:1]
    numbers = sorted({number for name in names for number in found[name]})
    lines = sum(0.6 + break_label(view.groups[number].label).count("\n") + 1 for number in numbers)
    label = f"{', '.join(known[name].heading for name in names)} of each group with intervals"
    paint = partial(paint_metrics, view, numbers, [(known[name], found[name]) for name in names])
    return Drawing("evaluation-metrics", label, (9.6, 0.9 + LINE * lines), paint)


def paint_metrics(
    view: View, numbers: Sequence[int], metrics: Sequence[tuple[Metric, Mapping[int, Estimate]]], figure: Figure
) -> None:
    """Paint a row per group: the mean and its interval."""
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axis, (metric, found) in zip(axes, metrics, strict=True):
        for row, number in enumerate(numbers):
            if number in found:
                paint_interval(axis, row, found[number], view.design.looks[number])
        axis.set(title=metric.heading, xlabel=metric.unit, ylim=(len(numbers) - 0.5, -0.5))
        axis.set_yticks(range(len(numbers)), [break_label(view.groups[number].label) for number in numbers], fontsize=8)
        axis.grid(axis="y", visible=False)
        axis.locator_params(axis="x", nbins=4)


def paint_interval(axis: Axes, row: int, found: Estimate, look: Look) -> None:
    """Paint a mean with its interval."""
    if found.low is not None and found.high is not None:
        axis.plot([found.low, found.high], [row, row], color=look.colour, linewidth=1.6, alpha=0.8)
    axis.plot([found.mean], [row], **look.mark, markersize=5.5)


def is_decided(rate: Rate, pairs: int) -> bool:
    """Whether two groups can be told apart, of so many pairs that are looked at together."""
    return rate.p is not None and rate.p * pairs <= SIGNIFICANT


def draw_matrices(view: View, rates: Sequence[Rate]) -> list[Drawing]:
    """Return the drawing of a matrix of win rates for each score; none without two groups."""
    numbers = sorted({number for rate in rates for number in (rate.a, rate.b)})
    by_score = {by: [rate for rate in rates if rate.by == by] for by in dict.fromkeys(rate.by for rate in rates)}
    if not by_score:
        return []
    columns = min(len(by_score), 2 if len(numbers) <= NARROW else 1)
    rows = -(-len(by_score) // columns)
    inches = 2.6 + (0.3 + CELL[0] * len(numbers)) * columns, (0.8 + CELL[1] * len(numbers)) * rows
    label = f"win rates of {len(numbers)} groups against each other by {', '.join(by_score)}"
    return [Drawing("evaluation-wins", label, inches, partial(paint_matrices, view, numbers, by_score, (rows, columns)))]


def paint_matrices(
    view: View, numbers: Sequence[int], rates: Mapping[str, Sequence[Rate]], shape: tuple[int, int], figure: Figure
) -> None:
    """Paint a matrix for each score; columns are numbered as rows are."""
    axes = figure.subplots(*shape, squeeze=False, sharey=True).ravel()
    for axis in axes[len(rates) :]:
        axis.set_visible(False)
    names = [f"{break_label(view.groups[number].label)}  ({place})" for place, number in enumerate(numbers, 1)]
    for axis, (by, own) in zip(axes, rates.items(), strict=False):
        paint_matrix(axis, numbers, own)
        axis.set(title=f"Win rate by {by}", xlim=(-0.5, len(numbers) - 0.5), ylim=(len(numbers) - 0.5, -0.5))
        axis.set_yticks(range(len(numbers)), names, fontsize=8)
        axis.set_xticks(range(len(numbers)), [f"({place})" for place in range(1, len(numbers) + 1)])
        axis.grid(visible=False)


def paint_matrix(axis: Axes, numbers: Sequence[int], rates: Sequence[Rate]) -> None:
    """Paint how often each group wins against each other, in both directions."""
    for rate in rates:
        place, other = numbers.index(rate.b), numbers.index(rate.a)
        low, high = rate.win.low, rate.win.high
        flipped = (None, None) if low is None or high is None else (1 - high, 1 - low)
        paint_cell(axis, (other, place), rate.win.mean, (low, high), is_decided(rate, len(rates)))
        paint_cell(axis, (place, other), 1 - rate.win.mean, flipped, is_decided(rate, len(rates)))
    axis.plot([-0.5, len(numbers) - 0.5], [-0.5, len(numbers) - 0.5], color=AXIS, linewidth=0.6)


def paint_cell(
    axis: Axes, place: tuple[int, int], win: float, ends: tuple[float | None, float | None], is_coloured: bool
) -> None:
    """Paint a win rate over its interval."""
    x, y = place
    if is_coloured:
        colour, strength = WIN if win > 0.5 else LOSS, 0.15 + 0.6 * abs(2 * win - 1)
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, alpha=strength, linewidth=0))
    axis.text(x, y, f"{win:.0%}", ha="center", va="bottom", fontsize=9, color=INK)
    if ends[0] is not None and ends[1] is not None:
        axis.text(x, y, f"{ends[0]:.0%} to {ends[1]:.0%}", ha="center", va="top", fontsize=6.5, color=INK)


def break_label(label: str) -> str:
    """Return a group's label with a line per key."""
    return label.replace(", ", ",\n")


def pairs_tables(view: View, rates: Sequence[Rate]) -> list[PanelTable]:
    """Return the table of win rates; none without two groups."""
    rows = [
        {
            "a": view.groups[rate.a].label, "b": view.groups[rate.b].label, "by": rate.by,
            "b wins": f"{rate.win.mean:.0%}",
            "95 %": "–" if rate.win.low is None or rate.win.high is None else f"{rate.win.low:.0%} to {rate.win.high:.0%}",
            "ties": rate.ties, "n": rate.win.n, "p": rate.p,
            "better": name_better(rate, sum(other.by == rate.by for other in rates)),
        }
        for rate in rates
    ]  # fmt: skip
    return [PanelTable("evaluation-wins", "Win rate of b over a", rows)] if rows else []


def name_better(rate: Rate, pairs: int) -> str:
    """Name the better group of two that can be told apart."""
    return ("b" if rate.win.mean > 0.5 else "a") if is_decided(rate, pairs) else "not told apart"


def draw_best_of_n(view: View, curves: Mapping[int, Curves]) -> list[Drawing]:
    """Return the drawing of the curves of best-of-n; none where prompts have one answer."""
    ways = list(dict.fromkeys(way for own in curves.values() for way in own))
    if not ways:
        return []
    columns = min(3, max(2, len(ways)))
    rows = -(-len(ways) // columns)
    label = "mean of the best of n answers against n"
    paint = partial(paint_best_of_n, view, curves, ways, (rows, columns))
    return [Drawing("evaluation-best-of-n", label, (3.9 * columns, 2.9 * rows), paint)]


def paint_best_of_n(
    view: View, curves: Mapping[int, Curves], ways: Sequence[tuple[str, str]], shape: tuple[int, int], figure: Figure
) -> None:
    """Paint a plot for each score that chooses and each that judges, with a line per group."""
    axes = figure.subplots(*shape, squeeze=False).ravel()
    for axis in axes[len(ways) :]:
        axis.set_visible(False)
    for axis, (by, judged_by) in zip(axes, ways, strict=False):
        for number, own in curves.items():
            look, points = view.design.looks[number], own.get((by, judged_by), {})
            known = [found for found in points.values() if found.low is not None and found.high is not None]
            means = [found.mean for found in points.values()]
            axis.plot(list(points), means, **look.line, marker=look.marker, markersize=3.5)
            if len(known) == len(points):
                ends: Any = [found.low for found in known], [found.high for found in known]
                axis.fill_between(list(points), *ends, color=look.colour, alpha=0.16, linewidth=0)
        axis.set_xscale("log", base=2)
        ticks = sorted({n for own in curves.values() for n in own.get((by, judged_by), {})})
        axis.set_xticks(ticks, map(str, ticks))
        axis.set(title=f"Best of n by {by}", xlabel="n", ylabel=f"mean {judged_by}")


def subset_tables(view: View, answers: Mapping[int, Answers]) -> list[PanelTable]:
    """Return the table of the first main metric by subset; none where the prompts' records make no subsets."""
    for metric in BY_SUBSET:
        found = {number: estimate_subsets(rows, metric) for number, rows in answers.items()}
        names = list(dict.fromkeys(name for own in found.values() for name in own))
        if names:
            known = metrics_of(KIND)[metric]
            rows = [
                {"group": view.groups[number].label} | {name: write(own.get(name), known) for name in names}
                for number, own in found.items()
            ]
            return [PanelTable("evaluation-subsets", f"{known.label} by subset", rows)]
    return []
