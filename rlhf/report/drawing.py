"""A drawing: painted once with matplotlib, written as SVG into a page, or as SVG and PDF into files of their own."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf.report.looks import Look

# The greys of a drawing by the page's names for them, which have other values on a dark page.
INK, FAINT, AXIS, GRID, PAPER = "#333333", "#666666", "#888888", "#e4e4e4", "#ffffff"
NAMES = {INK: "ink", FAINT: "faint", AXIS: "faint", GRID: "line", PAPER: "paper"}
PAINTED = "fill", "stroke"
# Inches of a title above a drawing.
TITLE = 0.3
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rlhf",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Drawing:
    """A drawing of some inches, which `paint` paints on a figure. Its name is that of its files; `label` is what a reader
    who does not see it is told."""

    name: str
    label: str
    size: tuple[float, float]
    paint: Callable[[Figure], None]


def add_title(drawing: Drawing, title: str) -> Drawing:
    """Return a drawing with a title above all that it shows."""
    width, height = drawing.size
    paint = partial(paint_titled, title, drawing.paint)
    return replace(drawing, label=f"{title}: {drawing.label}", size=(width, height + TITLE), paint=paint)


def paint_titled(title: str, paint: Callable[[Figure], None], figure: Figure) -> None:
    """Paint a drawing under a title."""
    paint(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def write_svg(drawing: Drawing) -> str:
    """Return the drawing as an SVG element of a page, whose greys follow the page's colours; the same for the same
    input."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # Not savefig, which would draw everything twice, the first time for nothing.
        canvas = FigureCanvasSVG(lay_out(drawing))
        canvas.print_svg(stream, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = stream.getvalue()
    # Plain replacements, which take a tenth of the time of regular expressions.
    changes = {mark: f"{mark}{drawing.name}-" for mark in (' id="', "url(#", 'href="#')}
    changes |= {f"{kind}: {grey}": f"{kind}: var(--{name}, {grey})" for grey, name in NAMES.items() for kind in PAINTED}
    svg = svg[svg.index("<svg") :]
    for old, new in changes.items():
        svg = svg.replace(old, new)
    return svg


def export_files(drawing: Drawing, legend: list[tuple[str, Look]]) -> dict[str, bytes]:
    """Return the drawing with its legend as the files of that name: SVG and PDF, on white."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf  # which most reports do without

    files = {}
    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white"}):
        for kind, backend in (("svg", FigureCanvasSVG), ("pdf", FigureCanvasPdf)):
            stream = io.BytesIO()
            write = getattr(backend(lay_out(drawing, legend)), f"print_{kind}")
            empty = ("Creator", "Date", "Format", "Type") if kind == "svg" else ("Creator", "Producer", "CreationDate")
            write(stream, metadata=dict.fromkeys(empty))
            files[f"{drawing.name}.{kind}"] = stream.getvalue()
    return files


def lay_out(drawing: Drawing, legend: list[tuple[str, Look]] | None = None) -> Figure:
    """Paint a drawing and place its axes; a legend stands below them."""
    columns = max(1, min(4, int(drawing.size[0] // 2.8)))
    rows = -(-len(legend) // columns) if legend else 0
    figure = Figure(figsize=(drawing.size[0], drawing.size[1] + 0.22 * rows), layout="constrained")
    drawing.paint(figure)
    if legend:
        lines = [Line2D([], [], **look.line, marker=look.marker, markersize=5) for _, look in legend]
        names = [label for label, _ in legend]
        figure.legend(lines, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9, handlelength=3)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.12, h_pad=0.1)
    layout.execute(figure)
    figure.set_layout_engine("none")  # else everything is drawn twice, the first time for the layout alone
    return figure
