"""The diagnosis of a reward model: what its scores of a preference set, of probes and of RewardBench say of it. From scores
alone; rlhf/evaluation/reward/scoring.py makes them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlhf.data.counted import SAME_TEXT
from rlhf.data.dataset import Comparison, Prompt
from rlhf.evaluation.reward.probes import FORMS, PLAIN, PROBES, Probe
from rlhf.evaluation.reward.rewardbench import Results, RewardBench, score_items
from rlhf.evaluation.reward.statistics import (
    Array,
    Bin,
    Histogram,
    bin_reliability,
    count_scores,
    credit,
    estimate_brier,
    estimate_by_group,
    estimate_correlation,
    estimate_ece,
    estimate_mean,
    estimate_share,
    fit_temperature,
    label_lengths,
    label_margins,
)
from rlhf.evaluation.reward.texts import ReadTexts
from rlhf.evaluation.statistics import Estimate

# A key of the records' meta splits the pairs into subsets if it has so many different values, which are no decimal numbers.
MOST_SUBSETS = 24
# What the mean of several models is called.
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Diagnosis:
    """What is found of a reward model.

    Attributes:
        metrics: Each metric by its name; those of a group are `<metric>/<group>`.
        counts: Pairs that were read, and why others were left out.
        reliability: The bins of the reliability diagram.
        histogram: The scores of chosen and of rejected responses.
        temperature: What the scores' differences would have to be divided by to fit the labels best; None where nothing
            does.
        missing: The subsets that a file of RewardBench lacks.
    """

    metrics: dict[str, Estimate]
    counts: dict[str, int]
    reliability: list[Bin] = field(default_factory=list)
    histogram: Histogram | None = None
    temperature: float | None = None
    missing: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Diagnosis":
        """Return the diagnosis that `asdict` made a JSON object of."""
        metrics = {name: Estimate(**found) for name, found in stored["metrics"].items()}
        histogram = None if stored["histogram"] is None else Histogram(**stored["histogram"])
        bins = [Bin(**found) for found in stored["reliability"]]
        return cls(**{**stored, "metrics": metrics, "reliability": bins, "histogram": histogram})


@dataclass(frozen=True)
class Pairs:
    """Pairs that could be read: the numbers of their texts, and their prompts."""

    records: list[Comparison]
    chosen: list[int]
    rejected: list[int]
    counts: dict[str, int]

    @property
    def prompts(self) -> list[Prompt]:
        """The prompt of each pair."""
        return [record.prompt for record in self.records]

    def differences(self, values: Array) -> Array:
        """Return a number of the chosen response less that of the rejected one, [P], from those of all texts [B]."""
        difference: Array = values[self.chosen] - values[self.rejected]
        return difference


def diagnose(
    read: ReadTexts,
    pairs: Sequence[Comparison],
    probes: Sequence[Probe] = (),
    bench: RewardBench | None = None,
    gold: Callable[[Prompt, str], float] | None = None,
    logprobs: tuple[Array, Array] | None = None,
) -> Diagnosis:
    """Return the diagnosis of a reward model, or of the mean of an ensemble.

    Args:
        read: Its scores of all texts.
        pairs: The preference set.
        probes: Probes of known weaknesses.
        bench: A file of RewardBench, of either version.
        gold: The true reward of (prompt, response), NaN where it does not apply; None where it is not known.
        logprobs: The log-probability of each text by a policy, and its tokens, [B] each.
    """
    kept = find_pairs(read, pairs)
    metrics: dict[str, Estimate] = {}
    if kept.records:
        metrics |= measure_accuracy(read, kept) | measure_calibration(read, kept)
        metrics |= measure_correlations(read, kept, logprobs)
        metrics |= measure_ensemble(read, kept) | (measure_gold(read, kept, gold) if gold else {})
    metrics |= measure_probes(read, probes)
    counts, missing = dict(kept.counts), list[str]()
    if bench is not None:
        results = measure_rewardbench(read, bench)
        metrics |= name_results(results)
        counts |= count_rewardbench(read, bench, results.left_out)
        missing = results.missing
    if not kept.records:
        return Diagnosis(metrics, counts, missing=missing)
    margins, scores = kept.differences(read.logits), read.mean
    histogram = count_scores(scores[kept.chosen], scores[kept.rejected])
    return Diagnosis(metrics, counts, bin_reliability(margins), histogram, fit_temperature(margins), missing)


def find_pairs(read: ReadTexts, pairs: Sequence[Comparison]) -> Pairs:
    """Return the pairs that could be read, each reason why others could not counted."""
    kept, reasons = Pairs([], [], [], {}), Counter[str]()
    for pair in pairs:
        chosen, rejected = read.find(pair.prompt, pair.chosen), read.find(pair.prompt, pair.rejected)
        if reason := SAME_TEXT if chosen == rejected else read.reasons[chosen] or read.reasons[rejected]:
            reasons[reason] += 1
            continue
        kept.records.append(pair)
        kept.chosen.append(chosen)
        kept.rejected.append(rejected)
    cut = int(read.cut[sorted({*kept.chosen, *kept.rejected})].sum())
    return replace(kept, counts={"pairs": len(kept.records), "responses cut": cut, **reasons})


def measure_accuracy(read: ReadTexts, pairs: Pairs) -> dict[str, Estimate]:
    """Measure accuracy in all, by which answer is longer, by the data's margin and by the records' meta; and ties."""
    margins, prompts = pairs.differences(read.mean), pairs.prompts
    right = credit(margins)
    found = {"accuracy": estimate_share(prompts, right)}
    by_length = label_lengths(read.lengths[pairs.chosen], read.lengths[pairs.rejected])
    groups = {"chosen": by_length, "margin": label_margins(np.array([record.margin for record in pairs.records]))}
    for key, labels in {**groups, **find_subsets(pairs.records)}.items():
        own = estimate_by_group(prompts, right, labels)
        found |= {f"accuracy/{key}={label}": own[label] for label in sort_labels(own)}
    ties = estimate_share(prompts, (margins == 0).astype(np.float64))
    return found | {"ties": ties, "margin": estimate_mean(prompts, margins)}


def find_subsets(records: Sequence[Comparison]) -> dict[str, list[str]]:
    """Return the label of each pair, "" where there is none, by each key of the records' meta that splits them."""
    found = {}
    for key in dict.fromkeys(key for record in records for key in record.meta):
        values = [record.meta.get(key) for record in records]
        labels = ["" if value is None else str(value) for value in values]
        has_decimals = any(isinstance(value, float) for value in values)
        if not has_decimals and 1 < len(set(labels) - {""}) <= min(MOST_SUBSETS, len(records) / 2):
            found[key] = labels
    return found


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return labels in the order of the numbers that they begin with, or of the alphabet."""
    try:
        return sorted(labels, key=lambda name: float(name.split(" to ")[0]))
    except ValueError:
        return sorted(labels)


def measure_calibration(read: ReadTexts, pairs: Pairs) -> dict[str, Estimate]:
    """Measure loss, Brier score and expected calibration error of the probabilities that the scores stand for."""
    margins, prompts = pairs.differences(read.logits), pairs.prompts
    return {
        "loss": estimate_mean(prompts, np.logaddexp(0.0, -margins)),
        "brier": estimate_brier(prompts, margins),
        "ece": estimate_ece(prompts, margins),
    }


def measure_correlations(read: ReadTexts, pairs: Pairs, logprobs: tuple[Array, Array] | None) -> dict[str, Estimate]:
    """Measure rank correlations of the score with the response's length and with its log-probability by a policy, over all
    different responses and within prompts."""
    numbers = {"length": read.lengths}
    if logprobs is not None:
        numbers |= {"logprob": logprobs[0], "logprob_per_token": logprobs[0] / logprobs[1]}
    found = {}
    for name, values in numbers.items():
        prompts, own = own_texts(pairs, values)
        for suffix, within in (("", False), ("_within_prompts", True)):
            correlation = estimate_correlation(prompts, read.mean[own], values[own], within)
            if np.isfinite(correlation.mean):
                found[f"correlation/{name}{suffix}"] = correlation
    return found


def own_texts(pairs: Pairs, values: Array) -> tuple[list[Prompt], list[int]]:
    """Return the different texts of pairs for which there is a value, and their prompts."""
    prompts = dict(zip(pairs.chosen + pairs.rejected, pairs.prompts * 2, strict=True))
    own = [number for number in sorted(prompts) if np.isfinite(values[number])]
    return [prompts[number] for number in own], own


def measure_gold(read: ReadTexts, pairs: Pairs, gold: Callable[[Prompt, str], float]) -> dict[str, Estimate]:
    """Measure how often the model orders pairs as the gold reward does, those that it does not tell apart left out, and the
    rank correlation with it."""
    true = np.full(read.scores.shape[1], np.nan)
    for record, chosen, rejected in zip(pairs.records, pairs.chosen, pairs.rejected, strict=True):
        true[chosen], true[rejected] = gold(record.prompt, record.chosen), gold(record.prompt, record.rejected)
    gaps, margins = pairs.differences(true), pairs.differences(read.mean)
    told = np.flatnonzero(np.isfinite(gaps) & (gaps != 0))
    prompts, own = own_texts(pairs, true)
    found = {}
    if len(told):
        right = credit(margins[told] * np.sign(gaps[told]))
        found["accuracy_gold"] = estimate_share([pairs.prompts[number] for number in told.tolist()], right)
        found["labels_gold"] = estimate_share([pairs.prompts[n] for n in told.tolist()], credit(gaps[told]))
    correlation = estimate_correlation(prompts, read.mean[own], true[own])
    return found | ({"correlation/gold": correlation} if np.isfinite(correlation.mean) else {})


def measure_ensemble(read: ReadTexts, pairs: Pairs) -> dict[str, Estimate]:
    """Measure how far the members of an ensemble are from each other: each one's accuracy, the standard deviation of a
    response's scores (of a population), and how often they order a pair differently."""
    if len(read.scores) < 2:
        return {}
    prompts, own = own_texts(pairs, read.mean)
    margins = np.stack([pairs.differences(scores) for scores in read.scores])
    right = credit(margins)
    split = (right.min(axis=0) != right.max(axis=0)).astype(np.float64)
    members = {f"accuracy/member={n}": estimate_share(pairs.prompts, found) for n, found in enumerate(right, start=1)}
    return {
        **members,
        "disagreement": estimate_mean(prompts, read.scores[:, own].std(axis=0)),
        "disagreement/pairs": estimate_share(pairs.prompts, split),
    }


def measure_probes(read: ReadTexts, probes: Sequence[Probe]) -> dict[str, Estimate]:
    """Measure how often the model prefers the worse response of each probe; a tie is half of one. A probe is left out that
    cannot be read, or whose responses are alike once they are cut."""
    scores, found = read.mean, {}
    for name in (*PROBES, PLAIN):
        worse = []
        for probe in (probe for probe in probes if probe.name == name):
            texts = read.find(probe.prompt, probe.better), read.find(probe.prompt, probe.worse)
            better, other = scores[list(texts)].tolist()
            is_alike = better == other and all(read.cut[number] for number in texts)
            if not (is_alike or any(read.reasons[number] for number in texts)):
                worse.append(float(other > better) + 0.5 * (other == better))
        if worse:
            found[f"probe/{name}"] = estimate_share(range(len(worse)), np.array(worse))
    if not any(f"probe/{name}" in found for name in FORMS):
        found.pop(f"probe/{PLAIN}", None)
    return found


def measure_rewardbench(read: ReadTexts, bench: RewardBench) -> Results:
    """Return the results on a file of RewardBench. Items of which an answer cannot be read are left out, and counted."""
    scores = [read.mean[[read.find(item.prompt, answer) for answer in item.answers]] for item in bench.items]
    kept = [(item, own) for item, own in zip(bench.items, scores, strict=True) if np.isfinite(own).all()]
    found = score_items(bench.version, [item for item, _ in kept], [own for _, own in kept])
    return replace(found, left_out=len(scores) - len(kept))


def count_rewardbench(read: ReadTexts, bench: RewardBench, left_out: int) -> dict[str, int]:
    """Count what of a file of RewardBench is not read as it is: answers that are cut, and items that are left out."""
    texts = {read.find(item.prompt, answer) for item in bench.items for answer in item.answers}
    counts = {"answers of RewardBench cut": int(read.cut[sorted(texts)].sum()), "items of RewardBench unread": left_out}
    return {name: number for name, number in counts.items() if number}


def name_results(results: Results) -> dict[str, Estimate]:
    """Return results on RewardBench as metrics."""
    prefix = "rewardbench" if results.version == 1 else "rewardbench2"
    found = {} if results.score is None else {prefix: results.score}
    found |= {f"{prefix}/{section}": estimate for section, estimate in results.sections.items()}
    return found | {f"{prefix}/{subset}": estimate for subset, estimate in results.subsets.items()}
