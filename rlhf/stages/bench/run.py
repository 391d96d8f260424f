"""A benchmark as a stage: this configuration as it is, on random weights and random tokens, with nothing beside it.

It saves no checkpoints: one that is broken off begins anew.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.catalog.stage import metrics_of
from rlhf.config.schema import Config
from rlhf.engine.zero import TrainingSpec, release, training_engine
from rlhf.experiment import stopping
from rlhf.experiment.stopping import Stopped
from rlhf.models.load import new_policy, new_scorer
from rlhf.planner.batches import answers_per_pass, batches
from rlhf.runtime.device import free, peak_memory_gib, reset_peak
from rlhf.runtime.distributed import is_main, maximum, start, total
from rlhf.stages.bench import measured_stages
from rlhf.stages.bench.compare import medians
from rlhf.stages.bench.inputs import comparisons, demonstrations
from rlhf.stages.bench.metrics import RATES
from rlhf.stages.bench.rounds import MakeRound, Round, random_models, round_of, train_toy_tokenizer
from rlhf.stages.context import Context
from rlhf.stages.reward import train as reward
from rlhf.stages.reward import work as reward_work
from rlhf.stages.sft import train as sft
from rlhf.stages.sft import work as sft_work
from rlhf.tracking.progress import Bar, describe_progress
from rlhf.tracking.throughput import Clock, step_speed

# The models of a stage, made for a configuration and removed afterwards: gives the round of a variant of it.
Rounds = Callable[[Config, Path], AbstractContextManager[MakeRound]]


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Measure `bench.repeats` rounds of what `bench.what` names; returns their medians."""
    context.tracker.resume(None, 0, 0.0)
    told: list[dict[str, float]] = []
    count = config.bench.repeats * len(benchmarked_stages(config))
    known = metrics_of(context.spec.stage)
    with (
        closing(measure_rounds(config, context.directory.path / "random")) as rounds,
        Bar("bench", count, is_main(), 0, context.planned) as bar,
    ):
        for number, figures in enumerate(rounds, start=1):
            told.append(figures | {"memory/peak_gib": maximum(peak_memory_gib())})
            context.tracker.log(number, told[-1])
            context.tracker.status(number, count)
            bar.update(number, describe_progress(figures, [name for name in RATES if name in figures][:1], known))
            if total(stopping.stop_requested.is_set())[0]:
                raise Stopped(f"asked to stop after {number} of {count} rounds")
    return medians(told) | {"memory/peak_gib": max(figures["memory/peak_gib"] for figures in told)}


def measure_rounds(config: Config, directory: Path) -> Generator[dict[str, float]]:
    """Yield the figures of each round, after one that warms up; of several stages under names of their own."""
    config = replace(config, bench=replace(config.bench, peer=None))
    for stage, rounds in benchmarked_stages(config).items():
        with rounds(config, directory) as make_round:
            once = make_round(config)
            once()
            for _ in range(config.bench.repeats):
                yield once() if config.bench.what != "stages" else prefix_with_stage(stage, once())


def benchmarked_stages(config: Config) -> dict[str, Rounds]:
    """Return what is measured, one after another: PPO, or all three stages."""
    stages: dict[str, Rounds] = {"sft": sft_rounds, "reward": reward_rounds, "ppo": ppo_rounds}
    return {stage: stages[stage] for stage in measured_stages(config)}


def prefix_with_stage(stage: str, figures: dict[str, float]) -> dict[str, float]:
    """Return a step's figures with the name of its stage in theirs."""
    named = {"time/step_s": f"time/{stage}_s"} | {
        f"throughput/{name}": f"throughput/{stage}_{name}"
        for name in ("samples_per_s", "tokens_per_s", "tflops_per_gpu", "mfu")
    }
    return {named.get(name, name): value for name, value in figures.items()}


@contextmanager
def ppo_rounds(config: Config, directory: Path) -> Iterator[MakeRound]:
    """Make rounds of PPO, or of one of its phases."""
    with random_models(config, directory) as models:
        yield lambda variant: round_of(variant, models)


@contextmanager
def sft_rounds(config: Config, directory: Path) -> Iterator[MakeRound]:
    """Make rounds of a step of supervised fine-tuning."""
    start(config)
    step, plan, tokenizer = config.sft, batches(config, "sft"), train_toy_tokenizer(config)
    items = demonstrations(config, step.batch_size)
    learning = TrainingSpec(
        step, plan, config.zero, config.lora, step.learning_rate, step.weight_decay, step.gradient_checkpointing
    )
    with built_engine(new_policy(config.model, config, tokenizer, config.zero, step.dropout), config, learning) as engine:

        def train(variant: Config) -> tuple[list[int], int]:
            sft.train_step(engine, items, plan, variant, tokenizer.pad_token_id)
            lengths = sft.sequence_lengths(items)
            return lengths, sft_work(variant, lengths)

        yield lambda variant: time_rounds(variant, partial(train, variant))


@contextmanager
def reward_rounds(config: Config, directory: Path) -> Iterator[MakeRound]:
    """Make rounds of a step of reward modelling, each record a prompt with two answers."""
    start(config)
    step, plan, tokenizer = config.reward, batches(config, "reward"), train_toy_tokenizer(config)
    items, zero = comparisons(config, step.batch_size), config.reward_zero
    learning = TrainingSpec(
        step, plan, zero, config.reward_lora, step.learning_rate, step.weight_decay, step.gradient_checkpointing,
        "reward_lora",
    )  # fmt: skip
    with built_engine(new_scorer(config.reward_model, config, tokenizer, zero, step.dropout), config, learning) as engine:

        def train(variant: Config) -> tuple[list[int], int]:
            how = plan.ranks, answers_per_pass(variant, "reward"), tokenizer.pad_token_id, variant.reward.packing
            _, lengths = reward.train_step(engine, items, *how, tokens=variant.reward.micro_batch_tokens)
            return lengths, reward_work(variant, lengths)

        yield lambda variant: time_rounds(variant, partial(train, variant))


@contextmanager
def built_engine(model: Any, config: Config, learning: TrainingSpec) -> Iterator[Any]:
    """Build an engine that trains a model, and free it afterwards."""
    reset_peak()
    engine = training_engine(model, config, learning)
    try:
        yield engine
    finally:
        release(engine)
        del engine
        free()


def time_rounds(config: Config, step: Callable[[], tuple[list[int], int]]) -> Round:
    """Return a round of a training step, which returns the lengths of its sequences and its operations."""

    def once() -> dict[str, float]:
        clock = Clock()
        with clock.phase("step"):
            lengths, flops = step()
        return step_speed(config, lengths, flops, clock)

    return once
