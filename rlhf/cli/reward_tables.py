"""The diagnosis of a reward model, as a terminal shows it."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf.evaluation.reward.diagnosis import Diagnosis
from rlhf.evaluation.reward.labels import describe_diagnosis, find_label, sort_metrics
from rlhf.evaluation.statistics import Estimate

# A terminal of fewer columns has no room for what the metrics mean.
WIDE = 120


def show_diagnosis(name: str, diagnosis: Diagnosis, width: int) -> RenderableType:
    """Return the tables of a reward model's diagnosis, for a terminal of so many columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "", "95 % interval", "n"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.columns[1].justify = "right"
    if width >= WIDE:
        table.add_column("", style="dim")
    section = ""
    for metric, estimate in sort_metrics(diagnosis.metrics):
        label = find_label(metric)
        if label.section != section:
            table.add_row(Text(label.section, style="bold"), end_section=False)
            section = label.section
        indent = "    " if label.is_group else "  "
        cells = [indent + label.text, f"{estimate.mean:.3f}", format_interval(estimate), f"{estimate.n:,}"]
        table.add_row(*cells, *([label.meaning] if width >= WIDE else []))
    return Group(Text(name, style="bold"), *describe_diagnosis(diagnosis), table)


def format_interval(estimate: Estimate) -> str:
    """Return the bounds of an estimate, or a dash where it has none."""
    return "–" if estimate.low is None else f"[{estimate.low:.3f}, {estimate.high:.3f}]"
