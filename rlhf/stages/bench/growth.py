"""How a time grows with a number: the line that it follows, the value from which it follows it no more, and tables of both.
Pure: no torch."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# A time that is so many times what a line says, or the line so many times the time, is not on the line.
TOLERANCE = 1.25
# Through fewer points there is always a line.
LEAST = 3


@dataclass(frozen=True)
class Line:
    """A time that has a fixed part, and one that grows with an amount."""

    fixed: float
    slope: float

    def at(self, amount: float) -> float:
        """Return the time of an amount."""
        return self.fixed + self.slope * amount


@dataclass(frozen=True)
class Row:
    """A value of what was varied, the amount of work that comes with it, the seconds of each round, and the shares of a
    step's phases."""

    value: int
    amount: float
    rounds: list[float]
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The shortest round: what else runs on the machine makes a round longer, never shorter."""
        return min(self.rounds)


@dataclass(frozen=True)
class Series:
    """What was measured along an axis.

    Attributes:
        title: What was varied, and of what the time is.
        head: What the values count.
        unit: What the amounts count.
        clock: Whose seconds they are.
        rows: The measurements, by their amounts: the least first.
    """

    title: str
    head: str
    unit: str
    clock: str
    rows: list[Row]


def fit_line(amounts: Sequence[float], seconds: Sequence[float]) -> Line:
    """Return the line whose relative errors have the least squares, of those that have no negative part."""
    ones = [1 / time for time in seconds]
    grown = [amount / time for amount, time in zip(amounts, seconds, strict=True)]
    ones_ones, grown_grown = sum(x * x for x in ones), sum(x * x for x in grown)
    ones_grown = sum(x * y for x, y in zip(ones, grown, strict=True))
    determinant = ones_ones * grown_grown - ones_grown**2
    if determinant > 1e-12 * ones_ones * grown_grown:
        fixed = (sum(ones) * grown_grown - sum(grown) * ones_grown) / determinant
        slope = (sum(grown) * ones_ones - sum(ones) * ones_grown) / determinant
        if fixed >= 0 and slope >= 0:
            return Line(fixed, slope)
        if slope < 0:
            return Line(sum(ones) / ones_ones, 0.0)
    return Line(0.0, sum(grown) / grown_grown)


def count_on_line(amounts: Sequence[float], seconds: Sequence[float]) -> int:
    """Return how many of the first times lie on one line, each within TOLERANCE of it."""
    for count in range(2, len(amounts) + 1):
        line = fit_line(amounts[:count], seconds[:count])
        ratios = [time / line.at(amount) for amount, time in zip(amounts[:count], seconds[:count], strict=True)]
        if max(ratios) > TOLERANCE or min(ratios) < 1 / TOLERANCE:
            return count - 1
    return len(amounts)


def follow(rows: Sequence[Row]) -> tuple[int, Line]:
    """Return how many of the first rows lie on one line, and that line."""
    amounts, seconds = [row.amount for row in rows], [row.seconds for row in rows]
    count = count_on_line(amounts, seconds)
    return count, fit_line(amounts[:count], seconds[:count])


def describe_growth(series: Series) -> str:
    """Say which line the times follow, and from which value on they do not."""
    first, *_, last = series.rows
    if len(series.rows) < LEAST:
        times = f"{last.seconds / first.seconds:.2f} times as long as {first.value:,}"
        return f"Too few values for a line: {last.value:,} takes {times}."
    count, line = follow(series.rows)
    said = f"{line.fixed:.3g} s + {line.slope:.3g} s × {series.unit}"
    if count == len(series.rows):
        return f"On one line: {said}."
    bent = series.rows[count]
    times = f"{bent.seconds / line.at(bent.amount):.2f} times what the line says"
    return f"On one line up to {series.rows[count - 1].value:,}: {said}. From there on not: {bent.value:,} takes {times}."


def make_table(series: Series) -> str:
    """Return what was measured along an axis as Markdown: a title, a row per value, and the line."""
    first, phases = series.rows[0], list(series.rows[0].shares)
    _, line = follow(series.rows)
    rounds = f" (largest of {len(first.rounds)})" if len(first.rounds) > 1 else ""
    head = [series.head, f"{series.clock}{rounds}", f"{series.unit}, times", "time, times", "over the line"]
    head += [f"% {' / '.join(phases)}"] if phases else []
    cells = [
        [
            f"{row.value:,}",
            f"{row.seconds:.3g} ({max(row.rounds):.3g})" if rounds else f"{row.seconds:.3g}",
            f"{row.amount / first.amount:.3g}",
            f"{row.seconds / first.seconds:.3g}",
            f"{row.seconds / line.at(row.amount):.2f}" if len(series.rows) >= LEAST else "–",
            *([" / ".join(f"{100 * row.shares[phase]:.0f}" for phase in phases)] if phases else []),
        ]
        for row in series.rows
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *cells])
    return f"**{series.title}**\n\n{table}\n\n{describe_growth(series)}"


def make_tables(found: dict[str, Any]) -> str:
    """Return all tables of a stored result."""
    return "\n\n".join(make_table(read_series(series)) for series in found["series"])


def read_series(stored: dict[str, Any]) -> Series:
    """Return a series as it was before it was stored."""
    return Series(**stored | {"rows": [Row(**row) for row in stored["rows"]]})


def store_series(series: Iterable[Series]) -> list[dict[str, Any]]:
    """Return series as they are stored."""
    return [asdict(each) for each in series]
