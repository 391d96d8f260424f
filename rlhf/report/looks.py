"""How groups look in plots, which groups a line may join, and which share a plot. Of two swept keys colour tells one, line
style and marker tell the other; where that is too much for one plot, each value of a key has a plot of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np

from rlhf.experiment.files import as_float
from rlhf.report.groups import Group

# Okabe and Ito's palette, which colour-blind people can tell apart, but for its yellow and black, which a white card and a
# dark page would swallow.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
# Line styles as matplotlib has them, in line widths, each with its marker.
SHAPES: tuple[tuple[tuple[float, ...], str], ...] = (
    ((), "o"),
    ((4.0, 1.6), "s"),
    ((1.0, 1.4), "D"),
    ((5.0, 1.4, 1.0, 1.4), "^"),
)
# More values of one of two swept keys, and more groups, are too much for one plot.
MOST_VALUES, MOST_GROUPS = 6, 12
# A result that several groups share has no group's colour.
SHARED = "#666666"


@dataclass(frozen=True)
class Look:
    """The colour of a group, the dashes of its lines (empty: a whole line), and its marker."""

    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = "o"

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of matplotlib's `plot` for a line."""
        return {"color": self.colour, "linestyle": (0, self.dashes) if self.dashes else "-"}

    @property
    def mark(self) -> dict[str, Any]:
        """The arguments of matplotlib's `plot` for markers without a line."""
        return {"color": self.colour, "marker": self.marker, "linestyle": ""}


@dataclass(frozen=True)
class Entry:
    """An entry of a legend: a look, what it says, and the groups that have it, by number."""

    label: str
    look: Look
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Design:
    """The looks of all groups, in their order.

    Attributes:
        looks: A look for each group.
        legend: What each look says.
        key: What the looks say together, as a sentence; empty where each group has a colour of its own.
        order: The numeric key along which a line joins groups; None where none does.
        lines: The groups that each line joins, by number, in the order of that key.
        plots: Where groups are spread over several plots, the title and the groups of each, by number.
    """

    looks: list[Look]
    legend: list[Entry] = field(default_factory=list)
    key: str = ""
    order: str | None = None
    lines: tuple[tuple[int, ...], ...] = ()
    plots: tuple[tuple[str, tuple[int, ...]], ...] = ()


def choose_design(groups: Sequence[Group]) -> Design:
    """Choose how groups look, from the keys in which they differ."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    options = {key: list(dict.fromkeys(group.settings.get(key) for group in groups)) for key in keys}
    numeric = [key for key in keys if all(parse_number(option) is not None for option in options[key])]
    spread = choose_spread(groups, options, numeric)
    told = [key for key in keys if key != spread]
    settings = [{key: group.settings[key] for key in told if key in group.settings} for group in groups]
    # Dashes can be told apart while they are few; an order of numbers is easier to see in colours.
    able = [key for key in told if len(options[key]) <= len(SHAPES)] if len(told) > 1 else []
    shaped = min(able, key=lambda key: (key in numeric, len(options[key])), default=None)
    looks = [Look(colour, *shape) for colour, shape in number_looks(settings, shaped, {key: options[key] for key in told})]
    parts = [("panels", spread)] if spread is not None else []
    parts += [("line style and marker", shaped)] if shaped is not None else []
    others = [key for key in told if key != shaped]
    sentence = ", ".join([f"Colour tells {' and '.join(others)}", *(f"{what} tell {key}" for what, key in parts)])
    order = max(numeric, key=lambda key: (key != spread, len(options[key])), default=None)
    legend = make_legend(groups, settings, looks) if spread is not None else list_groups(groups, looks)
    plots = spread_groups(groups, spread, options[spread]) if spread is not None else ()
    lines = () if order == spread and spread is not None else join_groups(groups, order)
    return Design(looks, legend, f"{sentence}." if parts else "", order if lines else None, lines, plots)


def choose_spread(groups: Sequence[Group], options: dict[str, list[str | None]], numeric: Sequence[str]) -> str | None:
    """Return the key whose values have plots of their own, that with the fewest values; None where one plot is enough."""
    is_much = len(groups) > MOST_GROUPS or max(map(len, options.values()), default=0) > MOST_VALUES
    if len(options) < 2 or not is_much:
        return None
    return min(options, key=lambda key: (len(options[key]), key in numeric))


def spread_groups(
    groups: Sequence[Group], key: str, options: Sequence[str | None]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the plots of a key: a title, and the groups with that value, by number."""
    numbers = [[n for n, group in enumerate(groups) if group.settings.get(key) == option] for option in options]
    titles = [f"{key} not set" if option is None else f"{key}={option}" for option in options]
    return tuple(zip(titles, map(tuple, numbers), strict=True))


def list_groups(groups: Sequence[Group], looks: Sequence[Look]) -> list[Entry]:
    """Return a legend with an entry for each group."""
    return [Entry(group.label, look, (n,)) for n, (group, look) in enumerate(zip(groups, looks, strict=True))]


def make_legend(groups: Sequence[Group], settings: Sequence[dict[str, str]], looks: Sequence[Look]) -> list[Entry]:
    """Return a legend with an entry for the settings that a look stands for, whatever the plot."""
    numbers: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, own in enumerate(settings):
        numbers.setdefault(tuple(own.items()), []).append(number)
    return [
        Entry(", ".join(f"{key}={value}" for key, value in own) or "default", looks[same[0]], tuple(same))
        for own, same in numbers.items()
    ]


def number_looks(
    settings: Sequence[dict[str, str]], shaped: str | None, options: dict[str, list[str | None]]
) -> list[tuple[str, tuple[tuple[float, ...], str]]]:
    """Return the colour and the shape of each group; without a key for shapes, more groups than colours have other shapes,
    unless a number orders them."""
    rest = [tuple(v for key, v in sorted(own.items()) if key != shaped) for own in settings]
    kinds = list(dict.fromkeys(rest))
    numbers = [kinds.index(kind) for kind in rest]
    if shaped is not None:
        palette = colours(len(kinds))
        shapes = [options[shaped].index(own.get(shaped)) for own in settings]
        return [(palette[number], SHAPES[shape]) for number, shape in zip(numbers, shapes, strict=True)]
    if len(options) == 1 and all(parse_number(option) is not None for found in options.values() for option in found):
        palette = colours(len(kinds))
        return [(palette[number], SHAPES[0]) for number in numbers]
    rounds = [(number % len(PALETTE), number // len(PALETTE) % len(SHAPES)) for number in numbers]
    return [(PALETTE[colour], SHAPES[shape]) for colour, shape in rounds]


def join_groups(groups: Sequence[Group], order: str | None) -> tuple[tuple[int, ...], ...]:
    """Return the groups that differ in the numeric key `order` alone, each set in the order of its numbers."""
    if order is None:
        return ()
    sets: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, group in enumerate(groups):
        sets.setdefault(tuple(sorted((k, v) for k, v in group.settings.items() if k != order)), []).append(number)
    joined = [
        sorted(numbers, key=lambda number: parse_number(groups[number].settings.get(order)) or 0.0)
        for numbers in sets.values()
    ]
    return tuple(tuple(numbers) for numbers in joined if len(numbers) > 1)


def parse_number(text: str | None) -> float | None:
    """Return the number that an override's value is; None for any other value."""
    try:
        return None if text is None else as_float(float(text))
    except ValueError:
        return None


def colours(count: int) -> list[str]:
    """Return a colour per group: distinct ones while there are few, else a scale in the groups' order."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    # Without the ends, which a dark page and a white card would swallow.
    scale = matplotlib.colormaps["viridis"](np.linspace(0.3, 0.88, count))
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour[:3]) for colour in scale.tolist()]
