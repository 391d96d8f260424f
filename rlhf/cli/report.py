"""`python -m rlhf report DIR`: read the directory, write the page and the tables, say where they are."""

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from rlhf.catalog.stage import pipeline_parts
from rlhf.config.terminal import Terminal, one_line
from rlhf.report.collect import ReportError, collect
from rlhf.report.final_metrics import FinalMetric, collect_metrics, compared_metrics, format_short
from rlhf.report.groups import Group, group_points
from rlhf.report.page import overview, page
from rlhf.report.tables import save, write_tables
from rlhf.report.throughput import PEAK


def main(arguments: list[str]) -> int:
    """Write the report; returns the exit code, 2 if there is nothing to report on or nowhere to write."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf report",
        description="Write what a sweep or a run came to as one HTML page (report.html, which needs no network) and as "
        "tables: points.* has a row per point, stages.* the planned and spent cost of each stage, table.* the final "
        "metrics over seeds, each as .csv, .json and .md. "
        "A sweep that is half finished or partly failed is reported as far as it is.",
        epilog="example: python -m rlhf report outputs/sweeps/kl",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="outputs/sweeps/<name>, a point of it, or outputs/runs/<run>"
    )
    parser.add_argument("--output", metavar="DIR2", type=Path, help="where to write (default: DIR/report)")
    given = parser.parse_args(arguments)
    try:
        collection = collect(given.directory)
    except ReportError as error:
        return refuse(str(error))
    groups, output = group_points(collection), given.output or given.directory / "report"
    content = page(collection, groups)
    try:
        save(output / "report.html", content)
        written = [output / "report.html", *write_tables(output, collection, groups)]
    except OSError as error:
        return refuse(
            f"{error.filename or output}: it cannot be written ({error.strerror}); choose another place with --output"
        )
    console = Terminal(soft_wrap=True)
    for line in overview(collection):
        console.print(line)
    console.print(summary(groups))
    for file in written:
        console.print(str(file))
    return 0


def refuse(reason: str) -> int:
    """Print one line on stderr; returns the exit code for bad input."""
    console = Terminal(stderr=True, soft_wrap=True)
    console.print_errors(one_line(reason))
    return 2


def summary(groups: list[Group]) -> Table:
    """Build the table of groups with the means that matter most; intervals are for the page and the tables."""
    table = Table(title="Means over seeds (n); intervals are in table.md", title_justify="left")
    table.add_column("group", overflow="fold")
    finals = collect_metrics(groups)
    shown = main_metrics(groups, finals)
    columns = [[cell.estimate for cell in compared_metrics(groups, final)] for final in shown]
    for final in shown:
        table.add_column(final.label, justify="right")
    for number, group in enumerate(groups):
        means = [known[number] for known in columns]
        cells = ["–" if mean is None else f"{format_short(mean.mean)} ({mean.n})" for mean in means]
        table.add_row(Text(one_line(group.label)), *map(Text, cells))
    return table


def main_metrics(groups: list[Group], finals: list[FinalMetric]) -> list[FinalMetric]:
    """Return the metrics that the last part of the pipeline is compared by, and its memory, which a benchmark has."""
    displays = {kind: stage.display for group in groups for kind in group.kinds for stage in group.stages(kind)}
    for part in pipeline_parts(displays):
        for number in range(max(len(displays[kind].compared) for kind in part)):
            sets = {kind: displays[kind].compared[number : number + 1] for kind in part}
            names = {(kind, name) for kind, chosen in sets.items() for compared in chosen for name in compared}
            shown = [final for final in finals if (final.kind, final.name) in names]
            if shown:
                return [final for final in finals if final in shown or final.name == PEAK]
    return []
