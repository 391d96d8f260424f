"""Tables that fit a terminal: no heading and no value is cut, and where not all columns fit the least important go."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from rlhf.config.terminal import fit_columns, make_printable

# A folded column has so many characters where the table is narrow.
FOLDED = 24
# What stands beside each cell, and at the end of a line.
BESIDE, END = 3, 1


def fit_table(
    title: str, rows: Sequence[Mapping[str, str]], width: int, *, text: Collection[str] = (), folded: Collection[str] = (),
    least: Iterable[str] = (),
) -> tuple[Table, list[str]]:  # fmt: skip
    """Return a table of rows, by their columns' headings, that is at most `width` characters wide, and the headings of the
    columns that it has no room for. Columns without any value are left out.

    Args:
        title: What stands above it.
        rows: Its rows, which all have the same columns.
        width: The characters that the terminal has.
        text: Columns of words, which stand left and may take several lines; values of others take one.
        folded: Columns that stand left and are broken anywhere where they must be, as names.
        least: The columns that may go, those that go first before the others.
    """
    columns = [name for number, name in enumerate(rows[0]) if number == 0 or any(row[name] for row in rows)]
    full = {name: max(map(len, [name, *(row[name] for row in rows)])) for name in columns}
    widths = {}
    for name in columns:
        values = [row[name] for row in rows]
        kept = [word for value in values for word in value.split()] if name in text else values
        widths[name] = max(map(len, [*name.split(), *kept]), default=0) if name not in folded else min(full[name], FOLDED)
    shown = fit_columns({name: size + BESIDE for name, size in widths.items()}, least, width - END)
    room = width - END - sum(widths[name] + BESIDE for name in shown)
    table = Table(title=title, title_justify="left")
    for name in shown:
        is_left = name in text or name in folded
        more = min(room, full[name] - widths[name])
        if is_left or more == full[name] - widths[name]:  # a heading that takes two lines anyway is no narrower for less
            room -= more
            widths[name] += more
        table.add_column(name, justify="left" if is_left else "right", overflow="fold", width=widths[name])
    for row in rows:
        table.add_row(*(Text(make_printable(row[name])) for name in shown))
    return table, [name for name in columns if name not in shown]
