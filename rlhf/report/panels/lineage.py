"""Where the results come from: data, stages and report as a graph, from left to right."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rlhf.catalog.display import is_in_package
from rlhf.catalog.stage import kind_of
from rlhf.config.terminal import plural
from rlhf.report.collect import Point
from rlhf.report.drawing import AXIS, INK, PAPER, Drawing
from rlhf.report.panels.panel import Panel, View
from rlhf.report.stage import Stage

# Stages of a kind that are drawn one by one; more are one box.
MOST = 12
# Inches of a box with the space around it.
WIDTH, HEIGHT = 2.1, 0.55
# Half of a box's width and height, as shares of that.
HALF = (0.38, 0.38)
NOTE = (
    "An arrow leads from what a stage reads to the stage: data, and the models of the stages before it. A name ends in the "
    "first twelve digits of the fingerprint, which covers all that decides the stage's result."
)


@dataclass
class Box:
    """A box of the graph: its lines of text, and the names of the boxes whose results it reads."""

    text: list[str]
    sources: set[str] = field(default_factory=set)


def make_panel(view: View) -> Panel | None:
    """Make the panel of the graph; None without stages."""
    if not view.collection.stages:
        return None
    boxes = build_boxes(view)
    layers = order_layers(boxes)
    size = (WIDTH * len(layers), HEIGHT * max(map(len, layers)) + 0.3)
    label = f"graph of {plural(len(view.collection.stages), 'stage')} from data to report"
    drawing = Drawing("lineage", label, size, partial(paint, boxes, layers))
    return Panel("lineage", "From data to report", [drawing], note=NOTE)


def build_boxes(view: View) -> dict[str, Box]:
    """Return the boxes by name: the data sets, each stage or all of a kind, and the report."""
    collection = view.collection
    kinds = [stage.kind for stage in collection.stages]
    names = {stage.path: stage.name if kinds.count(stage.kind) <= MOST else stage.kind for stage in collection.stages}
    boxes: dict[str, Box] = {}
    for stage in collection.stages:
        name, count = names[stage.path], kinds.count(stage.kind)
        text = describe_stage(stage) if count <= MOST else [stage.kind, plural(count, "stage")]
        boxes.setdefault(name, Box(text))
    report = Box([collection.name, plural(len(collection.points), "point")])
    for point in collection.points:
        own = {kind: names[stage.path] for kind, stage in point.stages.items()}
        data = name_data(point)
        boxes.setdefault(data, Box(["data", data.removeprefix("data ")]))
        for kind, name in own.items():
            needed = needed_kinds(kind)
            # A stage of another package does not say what it needs without being imported: all before it is drawn.
            used = list(own)[: list(own).index(kind)] if needed is None else [other for other in own if other in needed]
            boxes[name].sources |= {own[other] for other in used if own[other] != name} | {data}
        report.sources |= set(own.values())
    return boxes | {"report": report}


def describe_stage(stage: Stage) -> list[str]:
    """Return a stage's name, and below it the final metric that says most, or its state."""
    finals = [m for m in stage.display.final(detail=0) if m.name in stage.metrics]
    best = next((metric for metric in finals if metric.better), finals[0] if finals else None)
    if stage.state != "done" or best is None:
        return [stage.name, stage.state]
    return [stage.name, f"{best.heading} {best.write(stage.metrics[best.name])}"]


def name_data(point: Point) -> str:
    """Return the box of a point's data: the option that was typed, else where the records come from."""
    typed = [entry.partition("=")[2] for entry in point.overrides if entry.startswith("data=")]
    return f"data {typed[-1] if typed else point.config.get('data.source', 'unknown')}"


@cache
def needed_kinds(kind: str) -> frozenset[str] | None:
    """Return the kinds of stages that a kind may start from; None where only another package knows."""
    if not is_in_package(kind):
        return None
    return frozenset(kind_of(kind).needs)


def order_layers(boxes: dict[str, Box]) -> list[list[str]]:
    """Return the boxes by their longest way from data, the report last."""

    @cache
    def depth(name: str) -> int:
        return 1 + max((depth(source) for source in boxes[name].sources), default=-1)

    layers: list[list[str]] = [[] for _ in range(1 + max(map(depth, boxes)))]
    for name in boxes:
        layers[depth(name)].append(name)
    return layers


def paint(boxes: dict[str, Box], layers: Iterable[list[str]], figure: Figure) -> None:
    """Paint the boxes in columns, and their arrows as lines that end at a box."""
    columns = list(layers)
    tallest = max(map(len, columns))
    places = {name: (x, (tallest - len(names)) / 2 + y) for x, names in enumerate(columns) for y, name in enumerate(names)}
    axis = figure.add_subplot()
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(tallest - 0.5, -0.5))
    axis.axis("off")
    lines = [
        [(places[source][0] + HALF[0], places[source][1]), (places[name][0] - HALF[0] - 0.02, places[name][1])]
        for name in boxes
        for source in shown_sources(boxes, name)
    ]
    axis.add_collection(LineCollection(lines, colors=AXIS, linewidths=0.8, zorder=1))
    axis.plot(*zip(*(line[1] for line in lines), strict=True), marker=">", linestyle="", color=AXIS, markersize=4, zorder=2)
    for name, (x, y) in places.items():
        corner = (x - HALF[0], y - HALF[1])
        look: Any = {"facecolor": PAPER, "edgecolor": AXIS, "linewidth": 0.8, "zorder": 1.5}  # over lines that pass
        axis.add_patch(Rectangle(corner, 2 * HALF[0], 2 * HALF[1], **look))
        axis.text(x, y, "\n".join(boxes[name].text), ha="center", va="center", fontsize=8, color=INK)


def shown_sources(boxes: dict[str, Box], name: str) -> list[str]:
    """Return the sources of a box to which a line is drawn: the report's are those that nothing else reads."""
    if name != "report":
        return sorted(boxes[name].sources)
    read = {source for other, box in boxes.items() if other != name for source in box.sources}
    return sorted(boxes[name].sources - read)
