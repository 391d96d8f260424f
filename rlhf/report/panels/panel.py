"""A panel: a section of the page with drawings and tables, which a function of the collected stages makes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlhf.report.collect import Collection
from rlhf.report.drawing import Drawing
from rlhf.report.groups import Group
from rlhf.report.looks import Design


@dataclass(frozen=True, eq=False)
class View:
    """What panels are made from: the collection, its groups with their looks, and further plots that were asked for, as
    (metric, what it is drawn against)."""

    collection: Collection
    groups: list[Group]
    design: Design
    plots: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PanelTable:
    """A table of a panel: its name, which is that of its files, its heading, and its rows, all of the same columns."""

    name: str
    heading: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    """A section of the page.

    Attributes:
        name: The section's id.
        heading: What it is called.
        drawings: Its drawings, in order.
        tables: Its tables, below the drawings.
        shown: Of how many results of each group a drawing has something, for a legend; None where it needs no legend.
        note: What a reader has to know of it.
        empty: What stands there instead of drawings and tables where there are none.
    """

    name: str
    heading: str
    drawings: list[Drawing] = field(default_factory=list)
    tables: list[PanelTable] = field(default_factory=list)
    shown: list[int] | None = None
    note: str = ""
    empty: str = ""


# A panel of the page; None where it has nothing to say.
MakePanel = Callable[[View], Panel | None]
