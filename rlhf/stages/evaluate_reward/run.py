"""Evaluating reward models: their scores are kept as they are made, so that an evaluation that is broken off goes on."""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlhf.config.schema import Config
from rlhf.evaluation.answers import Row, read_rows, write_rows
from rlhf.evaluation.reward.diagnosis import ENSEMBLE, Diagnosis
from rlhf.evaluation.reward.evaluate import Asked, evaluate_reward_models
from rlhf.evaluation.reward.result import write_diagnoses
from rlhf.evaluation.reward.scoring import Reader, read_texts
from rlhf.evaluation.reward.texts import Reading, Text
from rlhf.experiment import stopping
from rlhf.experiment.fingerprint import content_id, result_config
from rlhf.experiment.stopping import Stopped
from rlhf.models.source import Source
from rlhf.planner.batches import texts_read_together
from rlhf.runtime.distributed import gather, is_main, start, total
from rlhf.stages.context import Context
from rlhf.tracking.progress import Bar

# The scores so far, a line a text: {"model", "number" among the texts, "score" or null, "length", "cut", "reason"}.
SCORES = "scores.jsonl"
# Forward passes over the longest texts whose scores are kept together.
PASSES = 32
# Metrics whose names in a diagnosis are others than here.
NAMES = {
    "accuracy/chosen=longer": "eval/accuracy_longer", "accuracy/chosen=shorter": "eval/accuracy_shorter",
    "ece": "eval/calibration_error",
}  # fmt: skip


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Diagnose the reward models; returns the metrics of the only one, or of the mean of all members of an ensemble."""
    start(config)
    keys, trusted = config.evaluate_reward, config.reward_model.trust_remote_code
    paths = {name_model(path): path for name, path in inputs.items() if name not in ("data", "policy")}
    models = {name: Source(path, "evaluate_reward.model", trust_remote_code=trusted) for name, path in paths.items()}
    policy = Source(inputs["policy"], "evaluate_reward.policy") if "policy" in inputs else None
    asked = Asked(policy, keys.rewardbench, keys.probes, len(paths) > 1, keys.tokens_per_pass, inputs.get("data"))
    context.tracker.resume(None, 0, 0.0)
    scores = KeptScores(context, config.checkpoint.resume, PASSES * texts_read_together(config, context.spec.stage))
    found = evaluate_reward_models(config, models, asked, scores.read)
    if is_main():
        identities = {name: content_id(path) for name, path in paths.items()}
        content = {"models": identities, "config": result_config(config, context.spec.stage)}
        write_diagnoses(context.directory.path, context.spec.fingerprint, content, found)
    metrics = name_metrics(found[ENSEMBLE] if asked.ensemble else next(iter(found.values())))
    context.tracker.log(len(paths), metrics)
    return metrics


def name_model(path: str) -> str:
    """Return what a model is called: the directory of the stage that made it, or else its own."""
    directory = Path(path).resolve()
    return directory.parent.name if directory.name == "model" else directory.name


def name_metrics(found: Diagnosis) -> dict[str, float]:
    """Return the metrics of a diagnosis that the stage declares, with their standard errors."""
    from rlhf.stages.evaluate_reward import METRICS

    declared = {metric.name for metric in METRICS}
    metrics = {"data/pairs": float(found.counts["pairs"])}
    for name, estimate in found.metrics.items():
        own = NAMES.get(name, f"eval/{name.replace('/', '_')}")
        if own in declared:
            metrics[own] = estimate.mean
            metrics |= {} if estimate.se is None else {f"{own}_se": estimate.se}
    return metrics


@dataclass
class KeptScores:
    """The scores that reward models have given so far, in the directory of a stage.

    Attributes:
        context: The stage's.
        resumes: Whether scores of an earlier attempt are taken over.
        part: How many texts are read before their scores are kept.
        known: The lines of each model, by its path.
    """

    context: Context
    resumes: bool
    part: int
    known: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        rows: list[Row] = gather(read_rows(self.file) if is_main() and self.resumes else [])[0]
        for row in rows:
            self.known[row["model"]].append(row)

    @property
    def file(self) -> Path:
        """Where they are kept."""
        return self.context.directory.path / SCORES

    def read(self, reader: Reader, texts: list[Text]) -> Reading:
        """Let a reward model read texts part by part, after whole parts that it has read before. Raises Stopped between two
        parts if the stage was asked to stop on any rank."""
        rows = self.keep_parts(reader.name, len(texts))
        with Bar("score", len(texts), is_main(), len(rows), self.context.planned) as bar:
            for first in range(len(rows), len(texts), self.part):
                made = list(list_rows(reader.name, first, read_texts(reader, texts[first : first + self.part])))
                self.context.directory.check_lock()
                if is_main():
                    write_rows(self.file, made, "a")
                rows += made
                self.context.tracker.status(len(rows), len(texts))
                bar.update(len(rows), {})
                if total(stopping.stop_requested.is_set())[0] and len(rows) < len(texts):
                    raise Stopped(f"{len(rows)} of {len(texts)} scores are kept")
        return join_rows(rows, reader.scale)

    def keep_parts(self, model: str, count: int) -> list[Row]:
        """Return the lines of a model in whole parts, so that passes are those of an unbroken run, and keep no others."""
        known = self.known[model]
        rows = self.known[model] = known if len(known) == count else known[: len(known) // self.part * self.part]
        if is_main():
            write_rows(self.file, [row for own in self.known.values() for row in own], "w")
            if rows:
                print(f"resumed {self.context.spec.stage}: {len(rows)} of {count} scores are kept", flush=True)
        return rows


def list_rows(model: str, first: int, reading: Reading) -> Iterator[Row]:
    """Yield what a model makes of texts, numbered from `first`, as lines."""
    columns = zip(reading.scores.tolist(), reading.lengths.tolist(), reading.cut.tolist(), reading.reasons, strict=True)
    for number, (score, length, cut, reason) in enumerate(columns, start=first):
        known = None if math.isnan(score) else score
        yield {"model": model, "number": number, "score": known, "length": length, "cut": cut, "reason": reason}


def join_rows(rows: list[Row], scale: float) -> Reading:
    """Return lines as what a model with this scale makes of texts."""
    scores = np.array([math.nan if row["score"] is None else row["score"] for row in rows])
    lengths, cut = np.array([row["length"] for row in rows]), np.array([row["cut"] for row in rows], dtype=bool)
    return Reading(scores, scale, lengths, cut, [row["reason"] for row in rows])
