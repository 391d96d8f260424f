"""What is printed after a run: the final figures."""

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.catalog.display import display_of
from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import Side, order_stages
from rlhf.config.terminal import make_printable
from rlhf.experiment.files import as_float, as_text
from rlhf.experiment.graph import Node
from rlhf.experiment.sweep import Outcome, Point, Task, metrics_by_stage, read_summary_metrics


def print_summary(stages: list[Node], outcomes: dict[str, Outcome], console: Console) -> None:
    """Print the table of final metrics, and two held-out prompts answered before and after PPO."""
    planned = [node for node in stages if outcomes[node.fingerprint].good]
    members = {node.name for node in stages if node.changes}  # of an ensemble, whose figures are like those of the first
    results = {}
    for node in planned:
        try:
            results[node.name] = node.directory.result()
        except ValueError as error:
            console.print(Text(make_printable(f"damaged: {error}"), style="red"), soft_wrap=True)
    results = {name: found for name, found in results.items() if name not in members}
    if results:
        table = Table(title="Result", title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for stage, result in results.items():
            for metric in display_of(stage).final():
                if metric.name in result.metrics:
                    table.add_row(metric.with_unit(metric.label or metric.name), format_with_error(result.metrics, metric))
        for stage, result in results.items():
            for label, found in count_losses(stage, result.metrics).items():
                table.add_row(label, found)
        table.add_section()
        for node in planned:
            if node.stage in results:
                told = node.directory.planned()
                plan = "" if told is None or told.seconds is None else f" ({told.seconds:.0f} planned)"
                table.add_row(f"seconds, {node.stage}{plan}", f"{results[node.stage].seconds:.0f}")
        console.print(table)
    for node in planned:
        if (sides := display_of(node.stage).sides) and node.directory.samples_file.is_file():
            print_samples(node, sides, console)
        console.print(Text(f"{node.stage}: {node.directory.path}"), soft_wrap=True)


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


def print_sweep(points: list[Point], outcomes: dict[str, Outcome], console: Console) -> None:
    """Print one row per point: its final metrics, or how it ended without."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    states = {}
    for point in points:
        ended = [(node, outcomes[node.fingerprint]) for node in point.stages]
        states[point.name] = ", ".join(
            f"{node.stage} {state}" for node, outcome in ended if (state := state_without_result(node, outcome))
        )
        results[point.name] = metrics_by_stage(point, outcomes)
    if not any(results.values()) and not any(outcome.state in ("failed", "stopped") for outcome in outcomes.values()):
        return  # all submitted
    columns = sweep_columns(results)
    table = Table(title="Result", title_justify="left")
    table.add_column("point", no_wrap=True)
    for heading in columns.values():
        table.add_column(heading, justify="right")
    if any(states.values()):
        table.add_column("")
    for name, found in results.items():
        values = [(metric, found.get(stage, {}).get(metric.name)) for stage, metric in columns]
        cells = ["" if value is None else metric.write(value) for metric, value in values]
        table.add_row(Text(name), *cells, *([states[name]] if any(states.values()) else []))
    console.print(table)
    nodes = {node.fingerprint: node for point in points for node in point.stages if outcomes[node.fingerprint].good}
    losses = [count_losses(node.stage, read_summary_metrics(node)) for node in nodes.values()]
    for line in dict.fromkeys(f"{label}: {found}" for rows in losses for label, found in rows.items()):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(Text(f"python -m rlhf report {points[0].directory.parent}"), soft_wrap=True)


def sweep_columns(results: dict[str, dict[str, dict[str, float]]]) -> dict[tuple[str, Metric], str]:
    """Return the columns that any of the points has a value for, with their headings; two of one heading name their stages.
    `results` are metrics by point and stage."""
    stages = order_stages(stage for found in results.values() for stage in found)
    columns = [
        (stage, metric)
        for stage in stages
        for metric in display_of(stage).final(detail=0)
        if any(metric.name in found.get(stage, {}) for found in results.values())
    ]
    headings = Counter(metric.heading for _, metric in columns)
    return {
        (stage, metric): metric.heading + (f", {stage}" if headings[metric.heading] > 1 else "")
        for stage, metric in columns
    }


def state_without_result(node: Node, outcome: Outcome) -> str | None:
    """Return the state of a stage that has no result; None if it has one."""
    try:
        if outcome.good:
            node.directory.result()
    except ValueError:
        return "damaged"
    return None if outcome.good else outcome.state


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
