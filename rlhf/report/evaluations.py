"""What the answers that evaluations keep say of each group: win rates, subsets and curves of best-of-n, over its seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from rlhf.evaluation.answers import FILE, Row
from rlhf.evaluation.statistics import Estimate, compare_scores, estimate_mean, sign_test
from rlhf.evaluation.summary import best_of_n_curves, pool_scores, summarize_subsets
from rlhf.experiment.files import Unreadable, as_float, read_lines
from rlhf.report.asked import KIND
from rlhf.report.groups import Group, to_yaml_text
from rlhf.report.stage import Stage
from rlhf.report.statistics import estimate, paired_p

Key = TypeVar("Key")

# Of a normal distribution, for intervals of metrics that have an error alone.
NORMAL = 1.96
# The answers of a group's policies, by seed.
Answers = dict[str, list[Row]]
# A curve of best-of-n: what chooses, what judges the chosen answer, and an estimate for each n.
Curves = dict[tuple[str, str], dict[int, Estimate]]


@dataclass(frozen=True)
class Rate:
    """How often the answers of group `b` win against those of group `a` by a score; `p` that neither wins more often."""

    a: int
    b: int
    by: str
    win: Estimate
    ties: int
    p: float | None


def combine(found: Sequence[Estimate]) -> Estimate:
    """Return the estimate of one seed as it is, over its prompts; of several their mean, over the seeds."""
    if len(found) == 1:
        return found[0]
    over = estimate([own.mean for own in found])
    assert over is not None
    return Estimate(over.mean, None, over.low, over.high, over.n)


def estimate_metric(stages: Sequence[Stage], name: str) -> Estimate | None:
    """Return a final metric of a group's evaluations; None where none has it."""
    found = []
    for stage in (stage for stage in stages if name in stage.metrics):
        mean, se, n = stage.metrics[name], stage.metrics.get(f"{name}_se"), int(stage.metrics.get("data/prompts", 0))
        low, high = (None, None) if se is None else (mean - NORMAL * se, mean + NORMAL * se)
        found.append(Estimate(mean, se, low, high, n))
    return combine(found) if found else None


def read_group(group: Group) -> Answers:
    """Return the answers of a group's evaluations by seed; those that are damaged or not whole are left out."""
    stages = {to_yaml_text(point.seed): point.stages[KIND] for point in group.points if KIND in point.stages}
    read = {seed: read_whole(stage) for seed, stage in stages.items() if stage.state == "done"}
    return {seed: rows for seed, rows in read.items() if rows}


def read_whole(stage: Stage) -> list[Row]:
    """Return the answers of an evaluation; none where any is damaged or missing."""
    try:
        rows = [row for row in read_lines(stage.path / FILE) if row is not None and is_answer(row)]
    except Unreadable:
        return []
    per_prompt: dict[int, int] = {}
    for row in rows:
        per_prompt[row["index"]] = per_prompt.get(row["index"], 0) + 1
    is_whole = len(per_prompt) == stage.metrics.get("data/prompts") and len(set(per_prompt.values())) == 1
    return rows if is_whole else []


def is_answer(row: Mapping[str, object]) -> bool:
    """Whether a line has what an answer has."""
    scores = [row.get("score"), row.get("gold")]
    texts, groups = (row.get("prompt"), row.get("response")), (row.get("rewards"), row.get("meta"))
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(group, dict) for group in groups)
        and all(score is None or as_float(score) is not None for score in scores)
        and isinstance(row.get("index"), int)
        and as_float(row.get("length")) is not None
    )


def compare_groups(answers: Mapping[int, Answers]) -> Iterator[Rate]:
    """Yield the win rates of each two groups by each score that both have, over the seeds with the same prompts in both."""
    scores = {
        number: {seed: ([row["prompt"] for row in rows], pool_scores(rows)) for seed, rows in own.items()}
        for number, own in answers.items()
    }
    for a, b in combinations(scores, 2):
        seeds = [seed for seed in scores[a] if seed in scores[b] and scores[a][seed][0] == scores[b][seed][0]]
        pools = [(scores[a][seed][1], scores[b][seed][1]) for seed in seeds]
        for by in dict.fromkeys(("gold", *(by for first, _ in pools for by in first))):
            wins = [compare_scores(first[by], second[by]) for first, second in pools if by in first and by in second]
            if wins:
                by_prompt = [own.mean(1) for own in wins]
                alone = len(by_prompt) == 1  # the interval of several seeds is over the seeds
                rates = [
                    estimate_mean(own) if alone else Estimate(float(own.mean()), None, None, None, len(own))
                    for own in by_prompt
                ]
                p = paired_p([rate.mean - 0.5 for rate in rates])
                if alone:
                    p = sign_test(int((by_prompt[0] > 0.5).sum()), int((by_prompt[0] < 0.5).sum()))
                yield Rate(a, b, by, combine(rates), sum(int((own == 0.5).sum()) for own in wins), p)


def estimate_subsets(answers: Answers, metric: str) -> dict[str, Estimate]:
    """Return a metric of a group by subset of the prompts."""
    return combine_by_key(
        {subset: own[metric] for subset, own in summarize_subsets(rows).items() if metric in own}
        for rows in answers.values()
    )


def estimate_curves(answers: Answers) -> Curves:
    """Return the curves of best-of-n of a group."""
    points = combine_by_key(
        {(point["by"], point["judged_by"], point["n"]): point["estimate"] for point in best_of_n_curves(rows)}
        for rows in answers.values()
    )
    curves: Curves = {}
    for (by, judged_by, n), found in points.items():
        curves.setdefault((by, judged_by), {})[n] = found
    return curves


def combine_by_key(found: Iterable[Mapping[Key, Estimate]]) -> dict[Key, Estimate]:
    """Return the estimates of several seeds as one for each key."""
    listed: dict[Key, list[Estimate]] = {}
    for own in found:
        for key, value in own.items():
            listed.setdefault(key, []).append(value)
    return {key: combine(values) for key, values in listed.items()}
