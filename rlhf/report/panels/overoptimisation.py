"""Over-optimisation: the gain in gold reward against the distance to the reference, with the form of Gao et al. fitted."""

from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.catalog.display import is_in_package
from rlhf.catalog.stage import kind_of
from rlhf.report.drawing import Drawing
from rlhf.report.groups import Group
from rlhf.report.overoptimisation import Fit, Trajectory, fit_form, predict
from rlhf.report.panels.multiples import add_multiples, measure_multiples
from rlhf.report.panels.panel import Panel, PanelTable, View
from rlhf.report.stage import Stage
from rlhf.report.statistics import LEVEL

# A curve of fewer evaluations tells nothing of a form with two coefficients.
FEWEST = 5
NOTE = (
    "The gain in gold reward over the model that training began with, at each evaluation, against d, the square root of "
    "the KL to it. The lines are d (alpha - beta log d) by least squares, of best of n d (alpha - beta d) "
    "(arXiv 2210.10760). The turn is the KL at which a line is highest, and is left out where that lies beyond what was "
    f"measured. Intervals of {LEVEL:.0%} are over seeds, drawn again, and over prompts, by their standard error. They take "
    "the form for granted."
)
Found = tuple[Group, list[Trajectory], Fit]


def make_panel(view: View) -> Panel | None:
    """Make the panel of over-optimisation; None where no policy was evaluated often enough by a gold reward."""
    kinds = dict.fromkeys(kind for group in view.groups for kind in group.kinds)
    found: dict[str, dict[int, Found]] = {}
    for kind in kinds:
        for number, group in enumerate(view.groups):
            trajectories = [t for stage in group.stages(kind) if (t := read_trajectory(stage)) is not None]
            if trajectories:
                is_sampled = is_in_package(kind) and kind_of(kind).only_samples
                fit = fit_form(trajectories, "linear" if is_sampled else "logarithmic")
                found.setdefault(kind, {})[number] = group, trajectories, fit
    if not found:
        return None
    label = "gain in gold reward against the square root of KL, with fitted curves"
    size = measure_multiples(view.design) if view.design.plots else (9.6, 3.9)
    drawings = [
        Drawing(f"overoptimisation-{kind}", label, size, partial(paint, view, known)) for kind, known in found.items()
    ]
    rows = [describe(*known) for each in found.values() for known in each.values()]
    shown = [max(len(known[n][1]) if n in known else 0 for known in found.values()) for n in range(len(view.groups))]
    table = PanelTable("overoptimisation", "Fitted coefficients", rows)
    return Panel("overoptimisation", "Over-optimisation", drawings, [table], shown, NOTE)


def read_trajectory(stage: Stage) -> Trajectory | None:
    """Return a stage's evaluations by a gold reward away from where it began; None if they are too few."""
    kl, gold = stage.series.get("eval/kl_sequence"), stage.series.get("eval/gold")
    start, known = stage.metrics.get("eval/gold_sft"), np.isfinite(gold) & (kl > 0)
    if start is None or known.sum() < FEWEST:
        return None
    return Trajectory(kl[known], gold[known] - start, stage.metrics.get("eval/gold_se", 0.0))


def describe(group: Group, trajectories: list[Trajectory], fit: Fit) -> dict[str, Any]:
    """Return a group's row: how much was fitted, the coefficients and the turn with their intervals, and the gain there."""
    farthest = max(float(t.kl.max()) for t in trajectories)
    row: dict[str, Any] = {"group": group.label, "seeds": len(trajectories)}
    row["evaluations"] = sum(len(t.kl) for t in trajectories)
    for name, bounded in (("alpha", fit.alpha), ("beta", fit.beta), ("KL at the turn", fit.turn)):
        for part, value in ((name, bounded.value), (f"{name}, low", bounded.low), (f"{name}, high", bounded.high)):
            row[part] = None if name.startswith("KL") and value > farthest else value
    is_seen = 0 < fit.turn.value <= farthest
    row["gain at the turn"] = float(predict(fit, np.array([fit.turn.value]))[0]) if is_seen else None
    return row


def paint(view: View, found: dict[int, Found], figure: Figure) -> None:
    """Paint each group's evaluations and its fitted line, as small multiples where groups are too many for a plot."""
    x, y = "√KL to the reference, per response (√nats)", "gain in gold reward"
    if view.design.plots:
        for axis, numbers in add_multiples(view.design, figure, "Over-optimisation", x, y):
            paint_fits(axis, view, {number: found[number] for number in numbers if number in found})
    else:
        axis = figure.subplots()
        paint_fits(axis, view, found)
        axis.set(xlabel=x, ylabel=y)


def paint_fits(axis: Axes, view: View, found: dict[int, Found]) -> None:
    """Paint evaluations and fitted lines of some groups."""
    for number, (_, trajectories, fit) in found.items():
        look = view.design.looks[number]
        for one in trajectories:
            axis.plot(np.sqrt(one.kl), one.gain, **look.mark, markersize=4.7, alpha=0.55, markeredgewidth=0)
        farthest = max(float(one.kl.max()) for one in trajectories)
        kl = np.linspace(1e-3, np.sqrt(farthest), 200) ** 2
        axis.plot(np.sqrt(kl), predict(fit, kl), color=look.colour)
