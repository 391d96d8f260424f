"""Files for a paper: each drawing of the page as SVG and PDF, each table as LaTeX and CSV."""

import re
from pathlib import Path
from typing import Any

from rlhf.config.terminal import make_printable
from rlhf.report.costs import cost_rows
from rlhf.report.drawing import export_files
from rlhf.report.final_metrics import collect_metrics
from rlhf.report.groups import to_yaml_text
from rlhf.report.panels import Panel, View
from rlhf.report.tables import Rows, as_csv, format_groups, format_points, format_stages, group_rows, point_rows

# What LaTeX reads as a command, as it is written instead.
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "…": r"\dots{}",
}  # fmt: skip


def export(output: Path, view: View, panels: list[Panel]) -> list[Path]:
    """Write the drawings and tables of a report into a directory; returns the files."""
    written: dict[str, bytes] = {}
    legend = [(entry.label, entry.look) for entry in view.design.legend]
    for panel in panels:
        for drawing in panel.drawings:
            written |= export_files(drawing, legend if panel.shown is not None else [])
    finals, collection = collect_metrics(view.groups), view.collection
    points, stages = point_rows(collection, view.groups, finals), cost_rows(collection)
    tables: dict[str, tuple[Rows, Rows]] = {
        "points": (points, format_points(points, finals)),
        "stages": (stages, format_stages(stages)),
        "table": (group_rows(view.groups, finals), format_groups(view.groups, finals)),
    }
    tables |= {table.name: (table.rows, table.rows) for panel in panels for table in panel.tables}
    for name, (whole, short) in tables.items():
        written[f"{name}.csv"] = make_printable(as_csv(whole)).encode()
        written[f"{name}.tex"] = make_printable(as_latex(short)).encode()
    output.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        (output / name).write_bytes(content)
    return [output / name for name in written]


def as_latex(rows: Rows) -> str:
    """Return a tabular with the lines of booktabs, whose text brings no commands along."""
    if not rows:
        return "% no rows\n"
    columns = list(rows[0])
    sides = "".join("r" if all(is_short_number(row[column]) for row in rows) else "l" for column in columns)
    lines = [columns, *[list(row.values()) for row in rows]]
    head, *body = [" & ".join(map(escape, line)) + r" \\" for line in lines]
    begin = rf"\begin{{tabular}}{{{sides}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])


def is_short_number(value: Any) -> bool:
    """Whether a cell is a number, or a dash for none."""
    return value is None or bool(re.fullmatch(r"-?[\d.,e+-]*|–", str(value)))


def escape(value: Any) -> str:
    """Return a cell as LaTeX text; `**` around a number is bold."""
    text = "" if value is None else " ".join(to_yaml_text(value).split())
    bold = re.fullmatch(r"\*\*(.*?)\*\*(.*)", text)
    if bold:
        return rf"\textbf{{{escape(bold[1])}}}{escape(bold[2])}"
    return "".join(ESCAPES.get(character, character) for character in text)
