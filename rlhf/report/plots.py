"""The plots, as SVG that a page can hold: curves over steps, and final reward against KL."""

import io
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rlhf.catalog.display import display_of
from rlhf.catalog.stage import known_metrics, pipeline_parts, stage_kinds
from rlhf.report.groups import Group
from rlhf.report.stage import Stage
from rlhf.report.statistics import Array, bands, estimate

# Okabe and Ito's palette, which colour-blind people can tell apart, but for its yellow and black,
# which a white card and a dark page would swallow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "osD^v<>h"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "lines.linewidth": 1.8,
}
# A curve has at most so many points; the steps of each are averaged.
PLACES = 200
# Curves of so few points show them.
DOTTED = 25

# At most so many panels show lengths.
PANELS = 4

# What a policy gained, over the KL that it cost.
FRONTIER, KL = ("eval/reward", "eval/gold"), "eval/kl_sequence"


@dataclass(frozen=True)
class Curve:
    """A plot over the steps of one kind of stage."""

    stage: str
    metric: str
    title: str
    axis: str
    step: str


def build_curves(groups: list[Group], stages: list[str]) -> list[Curve]:
    """Return the plots of some stages; where several kinds of stages have a plot of one title, the title names the
    stage."""
    displays = {kind: stage.display for group in groups for kind in stages for stage in group.stages(kind)}
    found = [
        (kind, metric, displays[kind].step)
        for kind in stages
        if kind in displays
        for metric in displays[kind].metrics.values()
        if metric.axis
    ]
    known = {kind: display_of(kind) for kind in stage_kinds()} | displays
    titles = Counter(metric.title for display in known.values() for metric in display.metrics.values() if metric.axis)
    return [
        Curve(
            kind, metric.name, metric.title + (f", {kind}" if titles[metric.title] > 1 else ""), metric.axis,
            f"{kind} step" if step == "step" else step,
        )
        for kind, metric, step in found
    ]  # fmt: skip


def colours(count: int) -> list[str]:
    """Return a colour per group: distinct ones while there are few, else a scale in the groups' order."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    scale = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, count))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour[:3]) for colour in scale.tolist()]


def curves(groups: list[Group]) -> str | None:
    """Draw reward, gold reward, KL and length over steps, as mean and interval over each group's seeds; None without a
    step."""
    panels = used_panels(groups)
    if not panels:
        return None
    rows = math.ceil(len(panels) / 2)

    def paint(canvas: Figure) -> None:
        axes = canvas.subplots(rows, 2, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes, panels, strict=False):
            axis.set_autoscale_on(False)  # else each band finds the limits of all before it anew
            for group, colour in zip(groups, colours(len(groups)), strict=True):
                draw_curve(axis, *series(group.stages(panel.stage), panel.metric), colour)
            axis.set(title=panel.title, xlabel=panel.step, ylabel=panel.axis)
            axis.autoscale()
            axis.margins(x=0.02)

    return draw_page("curves", (9.6, 3.2 * rows), paint)


def used_panels(groups: list[Group]) -> list[Curve]:
    """Return the plots of the last part of the pipeline that any point has come to."""
    kinds = [kind for group in groups for kind in group.kinds]
    return next((panels for stages in pipeline_parts(kinds) if (panels := drop_empty(groups, stages))), [])


def drop_empty(groups: list[Group], stages: list[str]) -> list[Curve]:
    """Return the plots of some stages for which any of them has logged anything."""
    return [
        panel
        for panel in build_curves(groups, stages)
        if any(np.isfinite(stage.series.get(panel.metric)).any() for g in groups for stage in g.stages(panel.stage))
    ]


def count_under_way(groups: list[Group]) -> list[int]:
    """Count the stages that each group's curves are of: the most of any panel."""
    panels = used_panels(groups)
    kinds = {panel.stage for panel in panels}
    return [max((sum(len(s.series.steps) > 0 for s in g.stages(kind)) for kind in kinds), default=0) for g in groups]


def series(stages: list[Stage], metric: str) -> tuple[Array, Array]:
    """Return the steps, ascending, and the metric there [stages, steps], NaN where a stage has not logged it.

    The gold reward begins at step 0 with that of the model that PPO starts from.
    """
    logged = []
    for stage in stages:
        values = stage.series.get(metric)
        known = np.isfinite(values)
        points = dict(zip(stage.series.steps[known].tolist(), values[known].tolist(), strict=True))
        if metric == "eval/gold" and points and "eval/gold_sft" in stage.metrics:
            points[0.0] = stage.metrics["eval/gold_sft"]
        logged.append(points)
    steps = sorted({step for points in logged for step in points})
    table = np.array([[points.get(step, np.nan) for step in steps] for points in logged]).reshape(len(logged), len(steps))
    return bin_series(np.array(steps), table)


def bin_series(steps: Array, values: Array) -> tuple[Array, Array]:
    """Average neighbouring steps, [stages, steps], so that at most PLACES columns are left."""
    if len(steps) <= PLACES:
        return steps, values
    starts = np.linspace(0, len(steps), PLACES + 1).astype(int)[:-1]
    known = np.isfinite(values)
    counts = np.add.reduceat(known, starts, axis=1, dtype=np.int64)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=1)
    widths = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / widths, np.where(counts, sums / np.maximum(counts, 1), np.nan)


def draw_curve(axis: Axes, steps: Array, values: Array, colour: str) -> None:
    """Draw the mean as a line, the interval as a band."""
    if not len(steps):
        return
    mean, low, high, _ = bands(values)
    axis.plot(steps, mean, color=colour, marker="o" if len(steps) <= DOTTED else "", markersize=3.5)
    axis.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)


def frontier(groups: list[Group]) -> str | None:
    """Draw final score and gold reward against final KL: a dot per seed, a large one per group's mean; None without."""
    known = known_metrics()
    panels = [known[name] for name in FRONTIER if any(len(score_pairs(group, name)) for group in groups)]
    if not panels:
        return None

    def paint(canvas: Figure) -> None:
        for axis, metric in zip(canvas.subplots(1, 2, squeeze=False)[0], panels, strict=False):
            draw_frontier(axis, groups, metric.name)
            axis.set(title=metric.title, xlabel=known[KL].with_unit(known[KL].label), ylabel="mean over held-out prompts")
            axis.margins(0.08)
        if len(panels) == 1:
            canvas.axes[1].set_visible(False)

    return draw_page("frontier", (9.6, 3.9), paint)


def score_pairs(group: Group, metric: str) -> Array:
    """Return KL and the metric of each finished stage that trained a policy, [stages, 2]."""
    stages = [stage for kind in group.kinds for stage in group.stages(kind)]
    known = [stage.metrics for stage in stages if metric in stage.metrics and KL in stage.metrics]
    return np.array([[metrics[KL], metrics[metric]] for metrics in known]).reshape(len(known), 2)


def draw_frontier(axis: Axes, groups: list[Group], metric: str) -> None:
    """Draw the starting point without KL, every seed, and the means in the order of their KL, joined."""
    means = []
    for number, (group, colour) in enumerate(zip(groups, colours(len(groups)), strict=True)):
        dots = score_pairs(group, metric)
        if len(dots):
            mark: Any = {"linestyle": "", "marker": MARKERS[number % len(MARKERS)], "color": colour}
            # Lines of markers alone: `scatter` takes five times as long.
            axis.plot(*dots.T, **mark, markersize=4.7, alpha=0.55, markeredgewidth=0, zorder=3)
            means.append(dots.mean(axis=0))
            axis.plot(*means[-1][:, None], **mark, markersize=9.7, markeredgecolor="white", markeredgewidth=1.2, zorder=4)
    start = estimate([value for group in groups for kind in group.kinds for value in group.values(kind, f"{metric}_sft")])
    if start is not None:
        axis.scatter(0.0, start.mean, s=60, facecolors="white", edgecolors="#555555", linewidths=1.4, zorder=4)
        axis.annotate("SFT", (0.0, start.mean), xytext=(8, 0), textcoords="offset points", va="center", color="#555555")
        means.append(np.array([0.0, start.mean]))
    ordered = np.array(sorted(means, key=lambda mean: float(mean[0])))
    axis.plot(*ordered.T, color="#bbbbbb", linewidth=1.0, zorder=2)


def lengths(stages: list[Stage]) -> str | None:
    """Return how long the training records of stages are, a panel for each kind of stage and each data; None without."""
    panels = list(dict.fromkeys((stage.kind, stage.lengths) for stage in stages if stage.lengths is not None))[:PANELS]
    if not panels:
        return None

    def paint(canvas: Figure) -> None:
        for axis, (kind, found) in zip(np.atleast_1d(canvas.subplots(1, len(panels))), panels, strict=True):
            for name, counts, colour in (("prompts", found.prompt, PALETTE[0]), ("responses", found.response, PALETTE[1])):
                if any(counts):
                    edges = np.arange(len(counts) + 1) * found.width
                    axis.stairs(counts, edges, fill=True, color=colour, alpha=0.45, label=name)
            axis.set_title(kind)
            axis.set_xlabel("tokens")
            axis.set_ylabel("records")
            axis.legend(frameon=False)

    return draw_page("lengths", (3.6 * len(panels), 2.6), paint)


def draw_page(name: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """Return what `paint` paints, as an SVG element whose ids begin with `name`; the same for the same input."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=size, layout="constrained")
        paint(canvas)
        layout: Any = canvas.get_layout_engine()
        layout.set(w_pad=0.12, h_pad=0.1)
        layout.execute(canvas)
        canvas.set_layout_engine("none")  # else everything is drawn twice, the first time for the layout alone
        stream = io.StringIO()
        # Not savefig, which would draw everything twice, the first time for nothing.
        FigureCanvasSVG(canvas).print_svg(stream, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
