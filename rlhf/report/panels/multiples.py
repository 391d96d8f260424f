"""Small multiples: a plot for each value of a key, all on the same axes, where groups are too many for one plot."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf.report.looks import Design

COLUMNS = 4


def measure_multiples(design: Design) -> tuple[float, float]:
    """Return the size of a drawing of small multiples, in inches."""
    columns = min(COLUMNS, len(design.plots))
    return 1.2 + 2.8 * columns, 0.9 + 2.1 * math.ceil(len(design.plots) / columns)


def add_multiples(design: Design, figure: Figure, title: str, x: str, y: str) -> list[tuple[Axes, tuple[int, ...]]]:
    """Add the axes of small multiples under a title, and return them with the groups that each shows, by number."""
    columns = min(COLUMNS, len(design.plots))
    rows = math.ceil(len(design.plots) / columns)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    for axis, (name, _) in zip(axes, design.plots, strict=False):
        axis.set_title(name, fontsize=9, fontweight="normal")
        axis.tick_params(labelbottom=True)
    for axis in axes[len(design.plots) :]:
        axis.set_visible(False)
    return [(axis, numbers) for axis, (_, numbers) in zip(axes, design.plots, strict=False)]
