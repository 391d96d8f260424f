"""`python -m rlhf report DIR`: read the directory, write the page and the tables, say where they are."""

import argparse
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from rlhf.catalog.stage import pipeline_parts
from rlhf.catalog.state import SETTLED
from rlhf.config.directories import PAGE
from rlhf.config.errors import ConfigError
from rlhf.config.fitted_table import fit_table
from rlhf.config.terminal import Terminal, one_line
from rlhf.report.collect import Collection, ReportError, collect
from rlhf.report.export import export
from rlhf.report.final_metrics import FinalMetric, collect_metrics, compared_metrics, format_short
from rlhf.report.groups import Group, group_points
from rlhf.report.looks import choose_design
from rlhf.report.page import overview, page
from rlhf.report.panels import View, make_panels
from rlhf.report.series import COSTS, STEP
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
    parser.add_argument(
        "--plot", metavar="METRIC[:COST]", action="append", default=[],
        help=f"a further plot, of any metric against its step, {', '.join(COSTS)}, or another metric; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--export", metavar="DIR3", type=Path, help="also write each drawing as SVG and PDF, each table as LaTeX and CSV"
    )
    parser.add_argument(
        "--live", metavar="SECONDS", type=int, nargs="?", const=30, default=0,
        help="write the page again every so many seconds (30) until all stages have ended; the browser loads it anew",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    with collect_garbage_rarely():
        return report(given)


@contextmanager
def collect_garbage_rarely() -> Iterator[None]:
    """Look for garbage in cycles seldom: a report makes a million objects that all stay, and looking costs 0.2 s."""
    usual = gc.get_threshold()
    gc.set_threshold(200_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def report(given: argparse.Namespace) -> int:
    """Write the report that the flags ask for; returns the exit code."""
    try:
        groups, collection, written = write_report(given, refresh=given.live)
        console = Terminal(soft_wrap=True)
        for line in overview(collection):
            console.print(line)
        table, left_out = summary(groups, console.width)
        console.print(table)
        if left_out:
            console.print(f"left out at {console.width} columns: {'; '.join(left_out)}; table.md has all")
        for file in written:
            console.print(str(file))
        while given.live > 0 and not is_settled(collection):
            time.sleep(given.live)
            _, collection, _ = write_report(given, refresh=given.live)
        if given.live > 0:
            write_report(given)
    except (ReportError, ConfigError) as error:
        return refuse(str(error))
    except OSError as error:
        problem = f"it cannot be written ({error.strerror}); choose another place with --output"
        return refuse(f"{error.filename or given.output or given.directory}: {problem}")
    except KeyboardInterrupt:
        write_report(given)
    return 0


def write_report(given: argparse.Namespace, refresh: int = 0) -> tuple[list[Group], Collection, list[Path]]:
    """Read the directory and write the page and the tables; a page to `refresh` says after how many seconds. Returns the
    groups, the collection and the files. Raises ReportError, ConfigError and OSError."""
    plots = tuple(split_plot(wanted) for wanted in given.plot)
    collection = collect(given.directory, [name for plot in plots for name in plot])
    check_plots(plots, collection)
    groups, output = group_points(collection), given.output or given.directory / "report"
    view = View(collection, groups, choose_design(groups), plots)
    panels = make_panels(view)
    content = page(view, panels, refresh)
    save(output / PAGE, content)
    written = [output / PAGE, *write_tables(output, collection, groups)]
    written += export(given.export, view, panels) if given.export is not None else []
    return groups, collection, written


def is_settled(collection: Collection) -> bool:
    """Whether all stages stay as they are until a command is typed."""
    return all(stage.state in SETTLED for stage in collection.stages)


def split_plot(wanted: str) -> tuple[str, str]:
    """Split a wanted plot into its metric and what it is drawn against: by default the step."""
    metric, _, against = wanted.partition(":")
    return metric, against or STEP


def check_plots(plots: Sequence[tuple[str, str]], collection: Collection) -> None:
    """Refuse a plot of what no stage has logged. Raises ConfigError."""
    logged = {name for stage in collection.stages for name in stage.series.values}
    for metric, against in plots:
        for name in (metric, *([] if against in (STEP, *COSTS) else [against])):
            if name not in logged:
                problem = f"no stage here has logged the metric {name}"
                fix = f"give a name of metrics.jsonl, and after a colon {STEP}, {', '.join(COSTS)} or another such name"
                raise ConfigError("--plot", f"{metric}:{against}", problem, fix)


def refuse(reason: str) -> int:
    """Print one line on stderr; returns the exit code for bad input."""
    console = Terminal(stderr=True, soft_wrap=True)
    console.print_errors(one_line(reason))
    return 2


def summary(groups: list[Group], width: int) -> tuple[Table, list[str]]:
    """Return the table of groups with the means that matter most, in so many characters, and the columns that do not fit;
    intervals are for the page and the tables."""
    finals = collect_metrics(groups)
    shown = main_metrics(groups, finals)
    columns = {final.label: [cell.estimate for cell in compared_metrics(groups, final)] for final in shown}
    rows = [
        {"group": one_line(group.label)}
        | {label: "–" if (mean := known[number]) is None else f"{format_short(mean.mean)} ({mean.n})"
           for label, known in columns.items()}
        for number, group in enumerate(groups)
    ]  # fmt: skip
    title = "Means over seeds (n); intervals are in table.md"
    return fit_table(title, rows, width, folded=("group",), least=list(columns)[:0:-1])


def main_metrics(groups: list[Group], finals: list[FinalMetric]) -> list[FinalMetric]:
    """Return the metrics that the last part of the pipeline is compared by, and its memory, which a benchmark has."""
    displays = {kind: stage.display for group in groups for kind in group.kinds for stage in group.stages(kind)}
    for part in pipeline_parts(displays):
        for number in range(max(len(displays[kind].compared) for kind in part)):
            sets = {kind: displays[kind].compared[number : number + 1] for kind in part}
            names = {(kind, name) for kind, chosen in sets.items() for compared in chosen for name in compared}
            shown = [final for final in finals if any((kind, final.name) in names for kind in final.kinds)]
            if shown:
                return [final for final in finals if final in shown or final.name == PEAK]
    return []
