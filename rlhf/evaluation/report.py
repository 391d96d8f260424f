"""What evaluations came to: metrics of each policy, win rates of each pair, and curves of best-of-n; as tables and as JSON.
No torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.catalog.metric import Metric
from rlhf.catalog.stage import metrics_of
from rlhf.config.fitted_table import fit_table
from rlhf.config.terminal import one_line, plural
from rlhf.evaluation import harness
from rlhf.evaluation.answers import Row, read_answers
from rlhf.evaluation.beside import align_answers, print_answers
from rlhf.evaluation.judge import Endpoint, combine_verdicts, make_questions
from rlhf.evaluation.pairs import Comparison, compare_answers, compare_verdicts, have_same_prompts
from rlhf.evaluation.statistics import Estimate
from rlhf.evaluation.summary import BY_SUBSET, best_of_n_curves, summarize_answers, summarize_subsets
from rlhf.experiment.files import read_object
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.tracking.progress import Bar

# More policies than this are rows of one table instead of columns.
WIDE = 4
# What a table has of policies that are rows.
MAIN = ("eval/gold", "eval/reward", "eval/kl_sequence", "eval/length")
# Prompts whose answers are printed side by side.
SHOWN = 18
# The width of a metric's name and of a cell with an interval, in characters.
NAME_WIDTH, CELL_WIDTH = 32, 30
# The headings of what is said of a pair, where they are other words.
PAIR = {"wins": "b wins", "interval": "95 %"}
# Of a normal distribution, for intervals of metrics that have an error alone.
NORMAL = 1.96


@dataclass(frozen=True)
class Evaluated:
    """A policy with its answers and what they tell."""

    name: str
    fingerprint: str
    rows: list[Row]
    metrics: dict[str, Estimate]
    dropped: int


@dataclass(frozen=True)
class Report:
    """Evaluations of policies on the same prompts, and how they compare."""

    models: list[Evaluated]
    pairs: list[Comparison]
    known: dict[str, Metric]  # what the stage declares
    invalid: int = 0  # answers that a judge gave no valid verdict of


def build_report(
    names: Sequence[str],
    directories: Sequence[StageDirectory],
    judge: Endpoint | None = None,
    console: Console | None = None,
) -> Report:
    """Read evaluations that are done, and compare all of them in pairs, in the order in which they were named; by a
    `judge` too, which is asked what it has not been asked before. `console` is told what that takes. Raises ConfigError."""
    models = [read_evaluation(name, directory) for name, directory in zip(names, directories, strict=True)]
    pairs = [(first, second) for first, second in combinations(models, 2) if have_same_prompts(first.rows, second.rows)]
    verdicts = {} if judge is None else ask_judge(judge, pairs, console)
    found: list[Comparison] = []
    for number, (first, second) in enumerate(pairs):
        both = (first.name, second.name)
        found += compare_answers(both, first.rows, second.rows)
        if number in verdicts:
            found += compare_verdicts(both, first.rows, second.rows, verdicts[number])
    known = metrics_of(directories[0].stage)
    known |= {name: harness.declare(name) for model in models for name in model.metrics if name.startswith(harness.PREFIX)}
    return Report(models, found, known, sum(win is None for wins in verdicts.values() for win in wins))


def ask_judge(
    judge: Endpoint, pairs: Sequence[tuple[Evaluated, Evaluated]], console: Console | None
) -> dict[int, list[float | None]]:
    """Return how far the second answer wins by a judge, for each answer of each pair; None where a verdict is invalid."""
    asked = [make_questions(first.rows, second.rows) for first, second in pairs]
    every = [question for both in asked for orders in both for question in orders]
    told = judge.plan_calls(every).describe()
    if console is not None:
        console.print(told, soft_wrap=True)
    with Bar("judge", len(every), console is not None) as bar:
        said = iter(judge.ask(every, lambda done, _: bar.update(done, {})))
    return {number: [combine_verdicts(next(said), next(said)) for _ in both] for number, both in enumerate(asked)}


def read_evaluation(name: str, directory: StageDirectory) -> Evaluated:
    """Read an evaluation that is done."""
    result, rows = directory.result(), read_answers(directory.path)
    metrics = summarize_answers(rows) | {
        known: with_error(result.metrics, known, int(result.metrics["data/demonstrated"]))
        for known in ("eval/loss", "eval/perplexity")
        if known in result.metrics
    }
    measured = (read_object(directory.path / harness.FILE) or {}).get("metrics", {})
    metrics |= {name: with_error(result.metrics, name, int(own["n"] or 0)) for name, own in measured.items()}
    ordered = {name: metrics[name] for name in declared_metrics(metrics, metrics_of(directory.stage))}
    return Evaluated(name, result.fingerprint, rows, ordered, int(result.metrics.get("data/prompts_dropped", 0)))


def with_error(metrics: dict[str, float], name: str, n: int) -> Estimate:
    """Return a metric that the stage has measured itself, with the normal interval of its error."""
    mean, se = metrics[name], metrics.get(f"{name}_se")
    if se is None:
        return Estimate(mean, None, None, None, n)
    return Estimate(mean, se, mean - NORMAL * se, mean + NORMAL * se, n)


def declared_metrics(names: Iterable[str], declared: Iterable[str]) -> list[str]:
    """Return metrics in the order of the stage's declaration; those of a reward, which depend on the configuration, come
    last."""
    known = list(declared)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def describe_report(report: Report) -> dict[str, Any]:
    """Return what `python -m rlhf evaluate --json` prints."""
    return {
        "models": [
            {"name": m.name, "fingerprint": m.fingerprint, "metrics": {k: vars(v) for k, v in all_metrics(m)}}
            for m in report.models
        ],
        "pairs": [
            {
                "a": pair.a, "b": pair.b, "by": pair.by, "win": pair.win.mean, "low": pair.win.low, "high": pair.win.high,
                "ties": pair.ties, "n": pair.win.n,
            }
            for pair in report.pairs
        ],
    }  # fmt: skip


def all_metrics(model: Evaluated) -> Iterator[tuple[str, Estimate]]:
    """Yield the metrics of a policy, those of subsets as `metric[key=value]`, and the points of curves of best-of-n as
    `best_of_n/<chosen by>/<judged by>`, with n."""
    yield from model.metrics.items()
    for subset, metrics in summarize_subsets(model.rows).items():
        yield from ((f"{name}[{subset}]", estimate) for name, estimate in metrics.items())
    for point in best_of_n_curves(model.rows):
        yield f"best_of_{point['n']}/{point['by']}/{point['judged_by']}", point["estimate"]


def print_report(report: Report, console: Console) -> None:
    """Print tables of policies, of pairs, of subsets and of best-of-n; and answers side by side, where prompts are few."""
    models = report.models
    is_wide = console.width >= NAME_WIDTH + CELL_WIDTH * len(models)
    known = report.known
    console.print(
        models_table(models, known, console.width)
        if len(models) > WIDE
        else metrics_table(models, known, is_wide, console.width)
    )
    n = len({row["index"] for row in models[0].rows})
    samples = len(models[0].rows) // n
    brackets = ", brackets the 95 % interval" if is_wide else ""
    told = f"{plural(n, 'prompt')}, {plural(samples, 'answer')} to each; ± is the standard error over prompts"
    console.print(f"{told}{brackets}", soft_wrap=True)
    if dropped := max(model.dropped for model in models):
        console.print(f"{plural(dropped, 'prompt')} did not fit data.max_prompt_tokens and were left out", soft_wrap=True)
    if report.pairs:
        print_pairs(models, report.pairs, console)
        console.print(
            "a win is a higher score, a tie half of one; p: two-sided sign test over prompts; at equal length: logistic "
            "regression on the difference in length (AlpacaEval 2)",
            soft_wrap=True,
        )
    if report.invalid:
        told = plural(report.invalid, "comparison")
        console.print(f"the judge gave no valid verdict of {told}, which count nowhere", soft_wrap=True)
    for table in (*subset_tables(models, known), *curve_tables(models)):
        console.print(table)
    if n <= SHOWN:
        print_answers(align_answers([(model.name, model.rows) for model in models]), console)


def metrics_table(models: Sequence[Evaluated], known: dict[str, Metric], brackets: bool, width: int) -> Table:
    """Return a row per metric and a column per policy, with intervals in `brackets` or without."""
    names = dict.fromkeys(name for model in models for name in model.metrics)
    rows = [
        {"metric": label_of(name, known)}
        | {one_line(model.name): write(model.metrics.get(name), known.get(name), brackets) for model in models}
        for name in declared_metrics(names, known)
    ]
    return fit_table("Policies", rows, width, text=("metric",))[0]


def models_table(models: Sequence[Evaluated], known: dict[str, Metric], width: int) -> Table:
    """Return a row per policy and a column per main metric."""
    names = [name for name in MAIN if any(name in model.metrics for model in models)]
    rows = [
        {"policy": one_line(model.name)}
        | {known[name].heading: write(model.metrics.get(name), known[name], brackets=False) for name in names}
        for model in models
    ]
    return fit_table("Policies", rows, width, folded=("policy",))[0]


def label_of(name: str, known: dict[str, Metric]) -> str:
    """Return what people read for a metric."""
    return known[name].with_unit(known[name].label) if name in known else name.removeprefix("eval/").replace("_", " ")


def write(found: Estimate | None, metric: Metric | None, brackets: bool = True) -> str:
    """Write an estimate with its error and its interval; a dash where there is none."""
    if found is None:
        return "–"
    form = "{:.2f}" if metric is None else metric.format
    text = form.format(found.mean)
    if found.se is not None:
        text += f" ± {form.format(found.se)}"
    if brackets and found.low is not None and found.high is not None:
        text += f" [{form.format(found.low)}, {form.format(found.high)}]"
    return text


def print_pairs(models: Sequence[Evaluated], pairs: Sequence[Comparison], console: Console) -> None:
    """Print a row per pair and score, in which policies have numbers where their names do not fit. A policy is named as the
    better one only where the two can be told apart."""
    rows = [{PAIR.get(key, key): value for key, value in describe_pair(pair).items()} for pair in pairs]
    fit = partial(fit_table, width=console.width, text=("a", "b", "by", "better"), least=("n", "ties"))
    table, left_out = fit("Win rate of b over a", rows)
    if left_out:
        numbers = {one_line(model.name): str(number) for number, model in enumerate(models, 1)}
        told = ", ".join(f"{number} {name}" for name, number in numbers.items())
        rows = [row | {"a": numbers[row["a"]], "b": numbers[row["b"]]} for row in rows]
        table, left_out = fit(f"Win rate of b over a: {told}", rows)
    console.print(table)
    if left_out:
        console.print(f"left out at {console.width} columns: {', '.join(left_out)}; a wider terminal and --json have them")


def describe_pair(pair: Comparison) -> dict[str, str]:
    """Return a pair as people read it."""
    low, high = pair.win.low, pair.win.high
    return {
        "a": one_line(pair.a),
        "b": one_line(pair.b),
        "by": pair.by.removeprefix("reward_"),
        "wins": f"{pair.win.mean:.0%}",
        "interval": "–" if low is None or high is None else f"{low:.0%} to {high:.0%}",
        "ties": str(pair.ties),
        "n": str(pair.win.n),
        "p": "<0.001" if pair.p < 0.001 else f"{pair.p:.3f}",
        "better": ("b" if pair.win.mean > 0.5 else "a") if pair.is_decided else "not told apart",
    }


def subset_tables(models: Sequence[Evaluated], known: dict[str, Metric]) -> Iterator[Table]:
    """Yield the main metrics by subset, a column per policy."""
    found = [summarize_subsets(model.rows) for model in models]
    names = dict.fromkeys(subset for own in found for subset in own)
    measured = {name for subsets in found for metrics in subsets.values() for name in metrics}
    metric = next((name for name in BY_SUBSET if name in measured), None)
    if not names or metric is None or len(models) > WIDE:
        return
    table = Table(title=f"{known[metric].label} by subset", title_justify="left")
    table.add_column("subset", overflow="fold")
    table.add_column("n", justify="right")
    for model in models:
        table.add_column(one_line(model.name), justify="right")
    for subset in names:
        cells = [own.get(subset, {}).get(metric) for own in found]
        count = next((cell.n for cell in cells if cell is not None), 0)
        table.add_row(one_line(subset), str(count), *(write(cell, known[metric], brackets=False) for cell in cells))
    yield table


def curve_tables(models: Sequence[Evaluated]) -> Iterator[Table]:
    """Yield the curves of best-of-n of each policy."""
    for model in models if len(models) <= WIDE else ():
        curves = best_of_n_curves(model.rows)
        if not curves:
            continue
        table = Table(title=f"Best of n answers of {one_line(model.name)}", title_justify="left")
        for column in ("chosen by", "judged by"):
            table.add_column(column)
        for column in ("n", "KL at most, nats", "mean"):
            table.add_column(column, justify="right")
        for point in curves:
            cells = [str(point["n"]), f"{point['kl']:.2f}", write(point["estimate"], None)]
            table.add_row(point["by"], point["judged_by"], *cells)
        yield table
