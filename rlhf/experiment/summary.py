"""What is printed after a run: its final metrics, held-out samples, and where all of it is."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.catalog.display import display_of
from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import Side, kind_of
from rlhf.config.terminal import make_printable
from rlhf.experiment.files import as_float, as_text
from rlhf.experiment.graph import Node
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.sweep import Outcome, Task

# So many pages are named.
MOST_PAGES = 3


def print_summary(stages: list[Node], outcomes: dict[str, Outcome], console: Console) -> None:
    """Print the table of final metrics, two held-out prompts answered before and after PPO, and where all of it is."""
    planned = [node for node in stages if outcomes[node.fingerprint].good]
    members = {node.name for node in stages if node.changes}  # of an ensemble, whose figures are like those of the first
    results: dict[str, Result] = {}
    for node in planned:
        try:
            results[node.name] = node.directory.result()
        except ValueError as error:
            console.print(Text(make_printable(f"damaged: {error}"), style="red"), soft_wrap=True)
    results = {name: found for name, found in results.items() if name not in members}
    if results:
        console.print(make_table(planned, results))
    for node in planned:
        if (sides := display_of(node.stage).sides) and node.directory.samples_file.is_file():
            print_samples(node, sides, console)
    for node in planned:
        console.print(Text(f"{node.name}: {node.directory.path}"), soft_wrap=True)
    print_pages(planned, console)


def make_table(nodes: Sequence[Node], results: Mapping[str, Result]) -> Table:
    """Return the table of the final metrics of stages that are done, what was lost of their data, and their times."""
    table = Table(title="Result", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for stage, metrics in drop_measured_twice(nodes, {name: found.metrics for name, found in results.items()}).items():
        for metric in display_of(stage).final():
            if metric.name in metrics:
                table.add_row(metric.with_unit(metric.label or metric.name), format_with_error(metrics, metric))
    for stage, result in results.items():
        for label, found in count_losses(stage, result.metrics).items():
            table.add_row(label, found)
    table.add_section()
    for node in nodes:
        if node.stage in results:
            told = node.directory.planned()
            plan = "" if told is None or told.seconds is None else f" ({told.seconds:.0f} planned)"
            table.add_row(f"seconds, {node.stage}{plan}", f"{results[node.stage].seconds:.0f}")
    return table


def drop_measured_twice(nodes: Sequence[Node], metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the final metrics of a point's stages, by stage, each quantity once: where an evaluation has measured the
    model of another stage, what people are shown of both is the evaluation's, whose prompts are those of all points."""
    makers = {str(node.directory.model): node.stage for node in nodes if not node.changes}
    found = {stage: dict(own) for stage, own in metrics.items()}
    for node in (node for node in nodes if node.stage in metrics):
        maker = makers.get(node.inputs.get(kind_of(node.stage).evaluates, ""))
        if maker in found:
            shown = {
                metric.name: metric.detail for metric in display_of(node.stage).final() if metric.name in found[node.stage]
            }
            for metric in display_of(maker).final():
                if shown.get(metric.name, metric.detail + 1) <= metric.detail:
                    found[maker].pop(metric.name, None)
    return found


def print_pages(nodes: Sequence[Node], console: Console) -> None:
    """Print where the pages of stages are that have one: of many the first few."""
    pages = [page for node in nodes if (page := node.directory.page).is_file()]
    for page in pages[:MOST_PAGES]:
        console.print(Text(f"page: {page}"), soft_wrap=True)
    if len(pages) > MOST_PAGES:
        console.print(f"and {len(pages) - MOST_PAGES} more, one in the directory of each evaluation")


def format_with_error(metrics: dict[str, float], metric: Metric) -> str:
    """Write a final metric and, where it has one, its standard error over held-out prompts."""
    error = metrics.get(f"{metric.name}_se")
    return metric.write(metrics[metric.name]) + (f" ± {metric.write(error)}" if error is not None else "")


def count_losses(stage: str, metrics: dict[str, float]) -> dict[str, str]:
    """Count the losses of a stage's data, by label: responses and texts without their end, pairs that are no comparison."""
    rows = {}
    for what in ("responses", "texts"):
        if cut := metrics.get(f"data/{what}_cut", 0.0):
            rows[f"{what} cut short, {stage}"] = f"{cut:.0f} of {metrics[f'data/{what}']:.0f}"
    if ties := metrics.get("data/ties", 0.0):
        rows[f"ties among the comparisons, {stage}"] = f"{ties:.0f}"
    return rows


def print_failures(tasks: list[Task], outcomes: dict[str, Outcome], console: Console) -> None:
    """Print each stage that did not come to its end, with the reason and its log."""
    for task in tasks:
        outcome = outcomes[task.key]
        if outcome.state in ("failed", "skipped"):
            log = (
                f" (log: {outcome.log})" if outcome.log is not None and str(outcome.log) not in str(outcome.reason) else ""
            )
            text = Text(make_printable(f"{outcome.state} {task.node.directory.path}: {outcome.reason}{log}"), style="red")
            console.print(text, soft_wrap=True)


def print_samples(node: Node, sides: tuple[Side, ...], console: Console) -> None:
    """Print two held-out prompts of the last evaluation, with the responses side by side."""
    lines = [row for row in node.directory.samples() if row is not None][-2:]
    table = Table(title="Held-out prompts", title_justify="left", show_lines=True)
    for column in ("prompt", *(side.label for side in sides)):
        table.add_column(column, overflow="fold", ratio=1)
    for sample in lines:
        prompt = Text(make_printable(as_text(sample.get("prompt")) or ""))
        table.add_row(prompt, *(format_answer(sample, side.key) for side in sides))
    if lines:
        console.print(table)


def format_answer(sample: dict[str, object], side: str) -> Text:
    """Return a response with its rewards; its entries begin with the key `side`."""
    known = {name: as_float(sample.get(f"{side}_{name}")) for name in ("score", "gold")}
    rewards = ", ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None)
    return Text(make_printable(f"{as_text(sample.get(side)) or ''}\n({rewards})"))
