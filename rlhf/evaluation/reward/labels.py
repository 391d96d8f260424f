"""What the metrics of a diagnosis are called in tables and on pages, and what they mean. Imports no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf.config.terminal import plural
from rlhf.evaluation.reward.diagnosis import Diagnosis
from rlhf.evaluation.reward.probes import PLAIN, PROBES
from rlhf.evaluation.statistics import Estimate

ACCURACY, CALIBRATION, FOLLOWS, ENSEMBLE = "Accuracy", "Calibration", "What the score follows", "Ensemble"
WORSE, BENCH = "Prefers the worse answer", "RewardBench"


@dataclass(frozen=True)
class Label:
    """The section that a metric stands in, what it is called there, what it means, and whether it is of a group of what
    stands above it."""

    section: str
    text: str
    meaning: str = ""
    is_group: bool = False


LABELS = {
    "accuracy": Label(ACCURACY, "all pairs", "pairs that it orders as the labels do; a tie is half of one"),
    "accuracy_gold": Label(ACCURACY, "against gold", "pairs that it orders as the gold reward does, its ties left out"),
    "labels_gold": Label(ACCURACY, "the labels against gold", "pairs that the labels order as the gold reward does"),
    "ties": Label(ACCURACY, "ties", "pairs whose two answers score the same"),
    "margin": Label(ACCURACY, "mean margin", "score of the preferred less the other answer"),
    "loss": Label(CALIBRATION, "loss", "-log sigmoid of the margin, in nats per pair"),
    "brier": Label(CALIBRATION, "Brier", "squared difference between the preferred answer's probability and 1"),
    "ece": Label(CALIBRATION, "calibration error", "mean |accuracy - confidence| of ten bins; above 0 by chance alone"),
    "correlation/length": Label(FOLLOWS, "length", "rank correlation with the answer's tokens"),
    "correlation/logprob": Label(FOLLOWS, "log-probability", "rank correlation with the policy's log-probability"),
    "correlation/logprob_per_token": Label(FOLLOWS, "log-probability per token", "the same, per token of the answer"),
    "correlation/gold": Label(FOLLOWS, "gold reward", "rank correlation with the gold reward"),
    "disagreement": Label(ENSEMBLE, "disagreement", "standard deviation of an answer's scores over the members"),
    "disagreement/pairs": Label(ENSEMBLE, "pairs it disagrees on", "pairs that not all members order alike"),
    "rewardbench": Label(BENCH, "version 1", "mean of the four sections"),
    "rewardbench2": Label(BENCH, "version 2", "mean of the six subsets"),
    f"probe/{PLAIN}": Label(WORSE, "the rejected answer as it is", "what `polite` and `listed` are read against"),
    **{f"probe/{name}": Label(WORSE, name, meaning) for name, (meaning, _) in PROBES.items()},
}
WITHIN = "_within_prompts"
CHOSEN = {"longer": "chosen is longer", "shorter": "chosen is shorter", "same": "as long as each other"}


def find_label(metric: str) -> Label:
    """Return the label of a metric; that of a group is made from its name."""
    if metric in LABELS:
        return LABELS[metric]
    if metric.endswith(WITHIN):
        whole = LABELS[metric.removesuffix(WITHIN)]
        return Label(whole.section, f"{whole.text}, same prompt", "the same, between answers to one prompt")
    kind, _, group = metric.partition("/")
    if kind.startswith("rewardbench"):
        return Label(BENCH, group, is_group=True)
    key, _, value = group.partition("=")
    if key == "member":
        return Label(ENSEMBLE, f"member {value}", "accuracy")
    text = CHOSEN[value] if key == "chosen" else f"{key} {value}" if key == "margin" else group
    return Label(ACCURACY, text, is_group=True)


def sort_metrics(metrics: Mapping[str, Estimate]) -> list[tuple[str, Estimate]]:
    """Return metrics section by section, sections in the order in which they first come."""
    sections = list(dict.fromkeys(find_label(metric).section for metric in metrics))
    return sorted(metrics.items(), key=lambda item: sections.index(find_label(item[0]).section))


def describe_diagnosis(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the lines that say what was read, what was left out, and what the scores would have to be divided by."""
    counts = dict(diagnosis.counts)
    pairs, cut = counts.pop("pairs"), counts.pop("responses cut")
    bench = {name: counts.pop(name) for name in tuple(counts) if "RewardBench" in name}
    left_out = "".join(f", {number:,} left out ({reason})" for reason, number in counts.items())
    yield f"{plural(pairs, 'pair', ',')}{left_out}; {plural(cut, 'response', ',')} cut at data.max_response_tokens"
    if bench:
        told = ", ".join(f"{number:,} {name}" for name, number in bench.items())
        yield f"{told}: raise data.max_prompt_tokens and data.max_response_tokens for its published scores"
    if diagnosis.temperature is not None:
        sure = "too sure of itself" if diagnosis.temperature > 1 else "less sure than it may be"
        yield f"the model is {sure}: its margins fit the labels best divided by {diagnosis.temperature:.2f}"
    if diagnosis.missing:
        lacking = plural(len(diagnosis.missing), "subset")
        yield f"no overall score of RewardBench, since the file lacks {lacking}: {', '.join(diagnosis.missing)}"
