"""What the program prints and writes for people: text of any origin that cannot steer a terminal."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters but for tab and newline, what reverses the direction of text, and halves of characters.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# An override in a point's name: commas within brackets do not end it.
PART = re.compile(r"(?:[^,{\[(]|\{[^}]*\}?|\[[^\]]*\]?|\([^)]*\)?)+")
# Columns of a table that is written where nothing has a width.
WIDE = 160
COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def make_printable(text: str) -> str:
    """Return a text whose control characters are shown instead of obeyed: ␛ for an escape, ␀ for NUL, � for others."""
    return UNPRINTABLE.sub(escape_character, text)


def escape_character(found: re.Match[str]) -> str:
    """Return the visible stand-in of a character."""
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: str) -> str:
    """Return a printable text without line breaks and tabs, which are shown too."""
    return make_printable(text).replace("\n", "\u240a").replace("\t", "\u2409")


def strip_colours(text: str) -> str:
    """Return a text without the colours that a program has put in it for a terminal."""
    return COLOUR.sub("", text)


def tell_apart(names: Sequence[str]) -> dict[str, str]:
    """Return for each point's name, overrides joined by commas, those of them that not every point has, with their keys as
    short as they can be: `kl_coef=0.3` of `ppo.kl_coef=0.3,seed=1`. A name that would lose its meaning stays whole."""
    labels = {name: ",".join(parts) or name for name, parts in split_apart(names).items()}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in names}


def split_apart(names: Sequence[str]) -> dict[str, list[str]]:
    """Return for each point's name, overrides joined by commas, those of them that not every point has, with their keys as
    short as they can be."""
    parts = {name: re.findall(PART, name) for name in names}
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    keys = {part.partition("=")[0] for own in parts.values() for part in own if part not in common}
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: word if last.count(word := key.rpartition(".")[2]) == 1 else key for key in keys}
    labels = {}
    for name, own in parts.items():
        told = [part.partition("=") for part in own if part not in common]
        labels[name] = [f"{short[key]}{sign}{value}" for key, sign, value in told]
    return labels


def fit_columns(widths: Mapping[str, int], least: Iterable[str], room: int) -> list[str]:
    """Return the columns of a table that so many characters have room for, by their names, without the first of the `least`
    important ones that have to go; `widths` are those of columns with what stands between them."""
    kept = dict(widths)
    for name in least:
        if sum(kept.values()) > room:
            kept.pop(name, None)
    return list(kept)


def plural(number: int, noun: str, form: str = "") -> str:
    """Write a number with its noun; `form` is its format, as "," for thousands."""
    return f"{number:{form}} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Write a time in two units, as `1 h 05 m`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    return f"{h} h {m:02} m" if h else f"{m} m {s:02} s" if m else f"{s} s"


def format_seconds(seconds: float | None) -> str:
    """Write a time in one unit, with three digits, as `1.08 h`; `?` where it is not known."""
    if seconds is None:
        return "?"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


def format_dollars(dollars: float | None) -> str:
    """Write a cost; `?` where it is not known."""
    return "?" if dollars is None else f"${dollars:,.0f}" if dollars >= 100 else f"${dollars:,.2f}"


class Terminal(Console):
    """A rich console for text of any origin: no markup is read in it, and whatever is printed is printable."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def print_errors(self, problems: object) -> None:
        """Print what is wrong, a line for each line of its text."""
        for line in str(problems).splitlines():
            self.print(Text.assemble(("error:", "bold red"), f" {line}"))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as any console does, with all text made printable; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(make_printable(segment.text), segment.style)


def open_table_console() -> Terminal:
    """Return a console as wide as the terminal, behind a pipe too, or as COLUMNS says; where nothing says it, as in a log,
    WIDE columns wide."""
    is_known = "COLUMNS" in os.environ or any(map(os.isatty, range(3)))
    return Terminal() if is_known else Terminal(width=WIDE)
