"""What the stored answers of a policy tell: its metrics with errors and intervals over prompts, by subset, pass@k, and
curves of best-of-n. No torch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.algo.best_of_n import bound_kl, estimate_best_of
from rlhf.evaluation.answers import Row
from rlhf.evaluation.statistics import (
    Estimate,
    distinct_n,
    estimate_mean,
    pass_at_k,
    repeated_share,
)

# Values of a key of the prompts' records that make subsets, at least and at most.
SUBSETS = 2, 12
# What is told of each subset.
BY_SUBSET = ("eval/gold", "eval/reward")
# The words of the n-grams whose diversity is measured.
NGRAMS = {1: "eval/distinct_1", 2: "eval/distinct_2"}


def summarize_answers(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return the metrics of a policy's answers, by name; those that its answers do not have are left out."""
    found = {name: estimate_mean(values) for name, values in value_columns(rows).items()}
    for name, column in (("eval/kl_token", "kl"), ("eval/kl_token_k3", "kl3")):
        if rows[0].get(column) is not None:
            found[name] = estimate_mean(mean_by_prompt(rows, column), mean_by_prompt(rows, "length"))
    for n, name in NGRAMS.items():
        share = distinct_n([row["response"] for row in rows], n)
        if share is not None:  # of all answers together, so that there is no error over prompts
            found[name] = Estimate(share, None, None, None, count_prompts(rows))
    return found | summarize_pass(rows)


def value_columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Return the metrics that have one value per prompt, by name, [prompts] each."""
    named = {
        "eval/gold": "gold", "eval/reward": "score", "eval/kl_sequence": "kl", "eval/kl_sequence_k3": "kl3",
        "eval/entropy": "entropy", "eval/length": "length",
    }  # fmt: skip
    found = {
        name: mean_by_prompt(rows, key) for name, key in named.items() if any(row.get(key) is not None for row in rows)
    }
    found |= {"_".join(("eval/reward", name)): scores for name, scores in reward_columns(rows).items()}
    found["eval/unended"] = mean_of(rows, [float(not row["ended"]) for row in rows])
    found["eval/repetition"] = mean_of(rows, [repeated_share(row["response"]) for row in rows])
    return found


def reward_columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Return the raw scores of each reward where there are several, by name, one mean per prompt that it applies to."""
    names = list(rows[0]["rewards"])
    found = {}
    for name in names if len(names) > 1 else []:
        applies = [row for row in rows if row["rewards"][name] is not None]
        if applies:
            found[name] = mean_of(applies, [row["rewards"][name] for row in applies])
    return found


def mean_by_prompt(rows: Sequence[Row], key: str) -> np.ndarray:
    """Return the mean of a column over each prompt's samples, [prompts]; without prompts that have none."""
    known = [row for row in rows if row.get(key) is not None]
    return mean_of(known, [row[key] for row in known])


def mean_of(rows: Sequence[Row], values: Sequence[float]) -> np.ndarray:
    """Return the mean of the values of rows over each prompt's samples, in the order of the prompts."""
    by_prompt: dict[int, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        by_prompt.setdefault(row["index"], []).append(float(value))
    return np.array([np.mean(by_prompt[index]) for index in sorted(by_prompt)])


def count_prompts(rows: Sequence[Row]) -> int:
    """Count the prompts that were answered."""
    return len({row["index"] for row in rows})


def pool_scores(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Return what judges answers, by name, [prompts, samples] each: the score, each reward of several, and gold; only what
    applies to all of them."""
    columns = {"reward": [row["score"] for row in rows], "gold": [row["gold"] for row in rows]}
    names = list(rows[0]["rewards"])
    columns |= {f"reward_{name}": [row["rewards"][name] for row in rows] for name in names if len(names) > 1}
    prompts = count_prompts(rows)
    return {
        name: np.array(values, dtype=np.float64).reshape(prompts, -1)
        for name, values in columns.items()
        if all(value is not None for value in values)
    }


def powers_up_to(most: int) -> list[int]:
    """Return 1, 2, 4 and so on, and the number itself."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


def name_pass(k: int, by: str) -> str:
    """Return the name of the metric pass@k by a score."""
    kind = f"pass_{k}"
    return f"eval/{kind}_{by}"


def summarize_pass(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Return pass@k of each reward whose scores are all 0 or 1, where prompts have several samples."""
    found = {}
    for name, scores in pool_scores(rows).items():
        samples = scores.shape[1]
        if samples > 1 and np.isin(scores, (0.0, 1.0)).all():
            for k in powers_up_to(samples):
                passed = [pass_at_k(samples, int(right), k) for right in scores.sum(1)]
                found[name_pass(k, name)] = estimate_mean(passed)
    return found


def best_of_n_curves(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the curves of best-of-n from the pool of answers: for each score that chooses and each that judges the chosen
    ones, at n = 1, 2, 4, …: {by, judged_by, n, kl, estimate}. Empty where prompts have one sample."""
    scores, curves = pool_scores(rows), []
    samples = len(rows) // count_prompts(rows)
    for by, proxy in scores.items():
        for judged_by in dict.fromkeys((by, "gold")) if samples > 1 else ():
            if by == "gold" or judged_by not in scores:
                continue
            for n in powers_up_to(samples):
                pools = zip(proxy, scores[judged_by], strict=True)
                found = estimate_mean([estimate_best_of(chosen, judged, n) for chosen, judged in pools])
                curves.append({"by": by, "judged_by": judged_by, "n": n, "kl": bound_kl(n), "estimate": found})
    return curves


def summarize_subsets(rows: Sequence[Row]) -> dict[str, dict[str, Estimate]]:
    """Return the main metrics of subsets of the prompts, by "key=value" of their records: of keys whose values are texts or
    whole numbers, and few."""
    found: dict[str, dict[str, Estimate]] = {}
    for subset, part in subsets(rows):
        own = {name: estimate_mean(values) for name, values in value_columns(part).items() if name in BY_SUBSET}
        found[subset] = own
    return found


def subsets(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the subsets of answers by the keys of their prompts' records."""
    keys = dict.fromkeys(key for row in rows for key in row["meta"])
    for key in keys:
        values = [known(row["meta"], key) for row in rows]
        counts = Counter(value for value in values if value is not None)
        if not SUBSETS[0] <= len(counts) <= SUBSETS[1]:
            continue
        for value in sorted(counts, key=str):
            yield f"{key}={value}", [row for row, own in zip(rows, values, strict=True) if own == value]


def known(meta: Mapping[str, Any], key: str) -> str | int | None:
    """Return a value of a record that can make a subset; None for any other."""
    value = meta.get(key)
    return value if isinstance(value, str | int) else None
