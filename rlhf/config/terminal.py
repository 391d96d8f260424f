"""What the program prints and writes for people: text of any origin that cannot steer a terminal."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters but for tab and newline, what reverses the direction of text, and halves of characters.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
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
