"""The loop that supervised fine-tuning and reward modelling share: steps over a data set, evaluation, checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.algo.schedule import learning_rate
from rlhf.catalog.stage import metrics_of
from rlhf.config.derive import Batches, logged_learning_rate
from rlhf.config.schema import Config, Lora, Training
from rlhf.data.loaders import all_batches, balanced_share, local_share, steps_per_epoch, total_steps
from rlhf.data.tokens import SequenceBatch
from rlhf.engine.zero import set_rates
from rlhf.runtime.distributed import is_main, rank
from rlhf.runtime.seeds import torch_seed
from rlhf.stages.answers import HeldoutAnswers
from rlhf.stages.context import Context, should_evaluate
from rlhf.stages.saver import Saver
from rlhf.tracking.nonfinite import Nonfinite, keep_finite
from rlhf.tracking.progress import Bar, describe_progress
from rlhf.tracking.throughput import Clock, step_speed

Metrics = dict[str, float]


@dataclass(frozen=True)
class Learner:
    """What a supervised stage brings to the loop.

    Attributes:
        section: The group of its training keys, which names its bar and its random streams.
        training: The values of that group.
        lora: The adapters that it trains.
        plan: How a batch is shared by the ranks.
        engine: The engine that trains its model.
        records: The encoded training records of all ranks.
        step: Takes an optimiser step on this rank's records; returns its metrics and the lengths of the sequences read.
        flops: Operations of a step on sequences of these lengths.
        sizes: The tokens of each record.
        batch: Joins the records of a step that is not finite, to be kept.
        evaluate: Measures the model on held-out records.
        answers: Answers held-out prompts before training and at each evaluation; None where nothing is sampled.
        judged_by: The metric that is noted of the model that training starts from.
        shown: The metrics of a step that the bar shows, beside its speed.
    """

    section: str
    training: Training
    lora: Lora
    plan: Batches
    engine: Any
    records: Sequence[Any]
    step: Callable[[list[Any]], tuple[Metrics, list[int]]]
    flops: Callable[[list[int]], int]
    sizes: Sequence[int] | np.ndarray
    batch: Callable[[list[Any]], SequenceBatch]
    evaluate: Callable[[], Metrics]
    judged_by: str
    shown: tuple[str, ...]
    answers: HeldoutAnswers | None = None


def train(config: Config, context: Context, learner: Learner) -> Metrics:
    """Train to the last step, from the newest checkpoint on; returns the last evaluation's metrics."""
    section, training, engine = learner.section, learner.training, learner.engine
    nonfinite = Nonfinite(training.max_nonfinite, context.directory.path / "nonfinite", rank())
    count, size, key = len(learner.records), training.batch_size, f"{section}.batch_size"
    steps = total_steps(count, size, training.epochs, training.max_steps, key)
    per_epoch = steps_per_epoch(count, size, key)
    every_batch = enumerate(all_batches(count, size, config.seed, key, steps))
    saver = Saver(context, {"model": engine})
    start = saver.resume()
    nonfinite.consecutive = start.numbers.get("nonfinite", 0)
    initial: Metrics = start.numbers.get("initial", {})
    final: Metrics = start.numbers.get("final", {})

    known, shown = metrics_of(context.spec.stage), (*learner.shown, "throughput/samples_per_s")
    context.tracker.status(start.step, steps)
    with Bar(section, steps, is_main(), start.step, context.planned) as bar:
        if not initial:
            bar.say("evaluating the model it starts from")
            initial = initial_metrics(learner.evaluate(), learner.judged_by)
        if learner.answers is not None:
            learner.answers.begin(start.numbers.get("before", []), bar.say)
        for number, chosen in islice(every_batch, start.step, None):
            factor = learning_rate(number, steps, 1.0, training.warmup_steps, training.schedule)
            set_rates(engine, factor)
            torch.manual_seed(torch_seed(config.seed, f"{section} dropout", number, rank()))
            clock = Clock()
            with clock.phase("step"):
                own = own_records(learner, chosen)
                measured, lengths = learner.step(own)
            metrics = {
                "lr/model": factor * logged_learning_rate(learner.lora, training.learning_rate),
                "train/epoch": (number + 1) / per_epoch,
            }
            metrics |= keep_finite(nonfinite, number + 1, measured, partial(batch_tensors, learner, own), config)
            metrics |= step_speed(config, lengths, learner.flops(lengths), clock)
            if should_evaluate(number + 1, steps, training.eval_every):
                bar.say("evaluating")
                final = learner.evaluate() | initial
                if learner.answers is not None:
                    final |= learner.answers.measure(number + 1, number + 1 == steps, bar.say)
                metrics |= final
            context.tracker.log(number + 1, metrics)
            context.tracker.status(number + 1, steps)
            bar.update(number + 1, describe_progress(metrics | measured, shown, known))
            numbers = {"final": final, "nonfinite": nonfinite.consecutive, "initial": initial}
            saver.boundary(number + 1, None, partial(complete_numbers, learner, numbers))
    return final


def complete_numbers(learner: Learner, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a checkpoint, with the answers from before the first step where there are any."""
    return numbers | ({} if learner.answers is None else {"before": learner.answers.numbers()})


def initial_metrics(metrics: Metrics, name: str) -> Metrics:
    """Return a metric and its standard error as those of the model that training started from: `<name>_initial`."""
    return {f"{name}_initial{end}": metrics[name + end] for end in ("", "_se") if name + end in metrics}


def batch_tensors(learner: Learner, records: list[Any]) -> dict[str, Tensor]:
    """Return the tensors of a step's batch by name, as they are kept if its numbers are not finite."""
    batch = learner.batch(records)
    return {"ids": batch.ids, "lengths": batch.lengths, "starts": batch.starts}


def own_records(learner: Learner, chosen: list[int]) -> list[Any]:
    """Return this rank's records of a global batch; without padding each rank gets about as many tokens."""
    ranks = learner.plan.ranks
    if learner.training.packing == "none":
        own = local_share(chosen, rank(), ranks)
    else:
        own = balanced_share(chosen, [int(learner.sizes[number]) for number in chosen], rank(), ranks)
    return [learner.records[number] for number in own]
