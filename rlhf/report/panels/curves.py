"""Metrics over the steps of each kind of stage: mean and range over each group's seeds."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf.catalog.display import display_of
from rlhf.catalog.stage import pipeline_parts, stage_kinds
from rlhf.config.terminal import plural
from rlhf.report.drawing import Drawing
from rlhf.report.groups import Group
from rlhf.report.looks import SHARED, Look
from rlhf.report.panels.multiples import add_multiples, measure_multiples
from rlhf.report.panels.panel import Panel, View
from rlhf.report.series import COSTS, PLACES, STEP, trace
from rlhf.report.stage import Stage
from rlhf.report.statistics import Array, spread

# Curves of so few points show them.
DOTTED = 25
COLUMNS = 3
NOTE = (
    "Lines are means over the seeds that reached the step, bands reach from the lowest seed to the highest; n is how many "
    "have logged any step. The gold reward is measured at evaluations only; step 0 is the model that training began with. "
    f"Curves of more than {PLACES} steps show averages of neighbouring steps. Groups that share a stage have a grey line."
)


@dataclass(frozen=True)
class Curve:
    """A plot of one kind of stage over its steps, or against a cost or another metric."""

    stage: str
    metric: str
    title: str
    axis: str
    step: str
    against: str = STEP


def make_panel(view: View) -> Panel:
    """Make the panel of curves: a drawing for each part of the pipeline, the last of it first."""
    groups = view.groups
    parts = [panels for stages in list_parts(groups) if (panels := build_curves(groups, stages))]
    asked = [curve for wanted in view.plots for curve in build_asked(groups, *wanted)]
    drawings = draw_curves(view, "asked", asked)
    for panels in parts:
        drawings += draw_curves(view, f"curves-{'-'.join(dict.fromkeys(panel.stage for panel in panels))}", panels)
    shown = count_under_way(groups, parts[0]) if parts else None
    return Panel("curves", "Curves over steps", drawings, [], shown, NOTE, "No stage has logged a step yet.")


def list_parts(groups: list[Group]) -> list[list[str]]:
    """Return the parts of the pipeline that the groups have, the last first."""
    return pipeline_parts(kind for group in groups for kind in group.kinds)


def build_curves(groups: list[Group], stages: list[str]) -> list[Curve]:
    """Return the plots of some kinds of stages for which one has logged anything; where several kinds have a plot of
    one title, the title names the stage."""
    displays = {kind: stage.display for group in groups for kind in stages for stage in group.stages(kind)}
    known = {kind: display_of(kind) for kind in stage_kinds()} | displays
    titles = Counter(metric.title for display in known.values() for metric in display.metrics.values() if metric.axis)
    return [
        Curve(
            kind, metric.name, metric.title + (f", {kind}" if titles[metric.title] > 1 else ""), metric.axis,
            f"{kind} step" if display.step == "step" else display.step,
        )
        for kind, display in displays.items()
        for metric in display.metrics.values()
        if metric.axis and is_logged(groups, kind, metric.name)
    ]  # fmt: skip


def build_asked(groups: list[Group], metric: str, against: str) -> list[Curve]:
    """Return the plots of a metric against the step, a cost or another metric, for each kind of stage that has both."""
    found = []
    for stages in list_parts(groups):
        for kind in stages:
            ways = [metric] if against in (STEP, *COSTS) else [metric, against]
            if all(is_logged(groups, kind, name) for name in ways):
                known = next(stage.display for group in groups for stage in group.stages(kind)).metrics
                title, axis = (known[metric].title, known[metric].unit) if metric in known else (metric, "")
                words = COSTS.get(against) or (
                    known[against].with_unit(known[against].label) if against in known else against
                )
                found.append(Curve(kind, metric, f"{title}, {kind}", axis, words or against, against))
    return found


def is_logged(groups: list[Group], kind: str, metric: str) -> bool:
    """Whether any stage of a kind has logged a metric at two steps or more, or at one besides its start."""
    stages = [stage for group in groups for stage in group.stages(kind)]
    return any(np.isfinite(s.series.get(metric)).sum() + (f"{metric}_sft" in s.metrics) > 1 for s in stages)


def count_under_way(groups: list[Group], panels: list[Curve]) -> list[int]:
    """Count the stages that each group's curves are of: the most of any plot."""
    kinds = {panel.stage for panel in panels}
    return [max((sum(len(s.series.steps) > 0 for s in g.stages(kind)) for kind in kinds), default=0) for g in groups]


def draw_curves(view: View, name: str, panels: list[Curve], columns: int = COLUMNS) -> list[Drawing]:
    """Return the drawing of some plots side by side, and those of small multiples where groups are too many for a plot."""
    many = [panel for panel in panels if is_spread(view, panel.stage)]
    few = [panel for panel in panels if panel not in many]
    drawings = []
    if few:
        columns = min(columns, len(few)) if len(few) > 1 else 2
        rows = math.ceil(len(few) / columns)
        label = f"{plural(len(few), 'plot')}: {', '.join(panel.title for panel in few)}"
        drawings.append(
            Drawing(name, label, (3.9 * columns, 2.7 * rows), partial(paint_curves, view, few, (rows, columns)))
        )
    for panel in many:
        # A metric may be drawn against several costs.
        own = "-".join([name, panel.metric, *([panel.against] if panel.against != STEP else [])])
        label, size = f"{panel.title}, a plot for each of {len(view.design.plots)}", measure_multiples(view.design)
        drawings.append(Drawing(own.replace("/", "-"), label, size, partial(paint_multiples, view, panel)))
    return drawings


def is_spread(view: View, kind: str) -> bool:
    """Whether the results of a kind of stage are spread over several plots: not where all groups share them."""
    return bool(view.design.plots) and len(list_results(view, kind)) > 1


def paint_curves(view: View, panels: list[Curve], shape: tuple[int, int], figure: Figure) -> None:
    """Paint plots, each with the curves of all groups."""
    axes = figure.subplots(*shape, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes, panels, strict=False):
        paint_plot(axis, list_results(view, panel.stage), panel)
        axis.set(title=panel.title, xlabel=panel.step, ylabel=panel.axis)


def paint_multiples(view: View, panel: Curve, figure: Figure) -> None:
    """Paint a metric as small multiples."""
    for axis, numbers in add_multiples(view.design, figure, panel.title, panel.step, panel.axis):
        paint_plot(axis, list_results(view, panel.stage, numbers), panel)


def paint_plot(axis: Axes, results: list[tuple[list[Stage], Look]], panel: Curve) -> None:
    """Paint the curves of some sets of stages."""
    axis.set_autoscale_on(False)  # else each line finds the limits of all before it anew
    bands = [
        band
        for stages, look in results
        if (band := draw_curve(axis, *trace(stages, panel.metric, panel.against), look)) is not None
    ]
    # Bands are added together: one by one they take longer than everything else of a plot.
    colours = [colour for _, colour in bands]
    axis.add_collection(PolyCollection([band for band, _ in bands], facecolors=colours, alpha=0.16, linewidths=0))
    axis.autoscale()
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=panel.against == STEP))


def list_results(view: View, kind: str, numbers: Iterable[int] | None = None) -> list[tuple[list[Stage], Look]]:
    """Return each set of stages of a kind once, of all groups or of some, with the look of its group; one that several of
    them share is grey."""
    found: dict[tuple[str, ...], tuple[list[Stage], Look]] = {}
    for number in range(len(view.groups)) if numbers is None else numbers:
        stages, look = view.groups[number].stages(kind), view.design.looks[number]
        key = tuple(sorted(str(stage.path) for stage in stages))
        found[key] = (stages, Look(SHARED) if key in found else look)
    return [entry for key, entry in found.items() if key]


def draw_curve(axis: Axes, positions: Array, values: Array, look: Look) -> tuple[Array, str] | None:
    """Draw the mean as a line; returns the corners and the colour of the band that is the range over seeds, if there is
    one."""
    if not len(positions):
        return None
    mean, low, high = spread(values)
    axis.plot(positions, mean, **look.line, marker=look.marker if len(positions) <= DOTTED else "", markersize=3.5)
    if len(values) == 1:
        return None
    known = np.isfinite(low)
    around = np.concatenate([positions[known], positions[known][::-1]])
    return np.column_stack([around, np.concatenate([low[known], high[known][::-1]])]), look.colour
