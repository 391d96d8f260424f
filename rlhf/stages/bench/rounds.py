"""Rounds of step 3 and of its phases, on models with random weights."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rlhf import DeepSpeedPPOTrainer, DeepSpeedRLHFEngine
from rlhf.catalog.metric import PHASES
from rlhf.config.schema import Config
from rlhf.data.encoded import Tokenizer
from rlhf.data.tokens import PromptBatch
from rlhf.engine.save import save_model
from rlhf.models.load import DTYPES, new_policy, new_scorer
from rlhf.models.tokenizer import train_tokenizer
from rlhf.planner.decode import decode_bytes
from rlhf.planner.flops import generation_flops
from rlhf.ppo.experience import Experience
from rlhf.ppo.report import describe_speed
from rlhf.runtime.device import copy_gb_s, free, matrix_tflops, reset_peak
from rlhf.runtime.distributed import barrier, device, is_main, maximum, start, total, world
from rlhf.runtime.seeds import uniforms
from rlhf.stages.bench.deepspeed_chat import DeepSpeedChatTrainer
from rlhf.stages.bench.generate import generate
from rlhf.stages.bench.inputs import prompts
from rlhf.tracking.throughput import Clock, throughput_metrics

# A round: does what is measured once, and returns its figures.
Round = Callable[[], dict[str, float]]
Trainer = DeepSpeedPPOTrainer | DeepSpeedChatTrainer
# Makes the round of a configuration, on models that several share.
MakeRound = Callable[[Config], Round]
# Rollouts to come, of which learning rates fall: more than any benchmark does.
ROLLOUTS = 10**6


@dataclass(frozen=True)
class Models:
    """The models of step 3, the prompts that all rounds answer, and a peer's step on the same (`bench.peer`)."""

    engine: DeepSpeedRLHFEngine
    tokenizer: Tokenizer
    prompts: PromptBatch
    peer: Round | None = None


def train_toy_tokenizer(config: Config) -> Tokenizer:
    """Train a tokenizer; the tokens that it makes of text do not matter."""
    return train_tokenizer([f"{number} words to measure with" for number in range(1000)], config.data.tokenizer_vocab_size)


@contextmanager
def random_models(config: Config, directory: Path) -> Iterator[Models]:
    """Provide models of the configuration's shapes with random weights. They are written to `directory`, since an engine
    loads models from a disk, and removed from there. All ranks must call this, with the same `directory`."""
    start(config)
    copy_gb_s(device(config))  # now, while nothing else is in memory
    matrix_tflops(device(config), DTYPES[config.precision.dtype])
    free()
    reset_peak()
    tokenizer = train_toy_tokenizer(config)
    for name, build, model, zero in (
        ("actor", new_policy, config.model, config.zero), ("reward", new_scorer, config.reward_model, config.reward_zero),
    ):  # fmt: skip
        built: Any = build(model, config, tokenizer, zero, 0.0)
        save_model(SimpleNamespace(module=built), tokenizer, replace(config.lora, rank=0), directory / name, "")
        del built
    free()
    engine = DeepSpeedRLHFEngine(str(directory / "actor"), str(directory / "reward"), tokenizer, ROLLOUTS, config)
    models = Models(engine, tokenizer, prompts(config, engine.device))
    if config.bench.peer == "trl":
        from rlhf.stages.bench.trl import TRLStep

        models = replace(models, peer=TRLStep(config, directory, engine, models.prompts))
    barrier()
    if is_main():
        shutil.rmtree(directory)
    try:
        yield models
    finally:
        engine.release()
        del engine, models
        free()


def round_of(config: Config, models: Models) -> Round:
    """Return a round of `bench.what`, in the configuration's way or in that of its peer."""
    if config.bench.peer == "trl":
        assert models.peer is not None
        return models.peer
    kinds = {"rollout": rollout_round, "score": score_round, "train": train_round}
    return kinds.get(config.bench.what, step_round)(config, models)


def rollout_round(config: Config, models: Models) -> Round:
    """Return a rollout, by itself: by the configuration's engine, or the peer's by transformers' generate."""
    batch = models.prompts
    random = uniforms(config.seed, "bench", 0, batch.samples, config.rollout.max_new_tokens)
    draws = torch.from_numpy(random).to(models.engine.device)

    def once() -> dict[str, float]:
        clock = Clock()
        with clock.phase("rollout"):
            if config.bench.peer is None:
                sampler = models.engine.sampler_of(models.engine.actor, config.rollout)
                sampler.sync()
                lengths = sampler.generate(batch, draws).lengths
            else:
                lengths = generate(models.engine, config, batch, do_sample=True).said_mask.sum(1)
        asked, said = batch.lengths.tolist(), lengths.tolist()
        seconds = maximum(clock.seconds["rollout"])
        samples, tokens, flops = total(len(said), sum(said), generation_flops(config.model, asked, said, config.lora))
        figures = {"time/rollout_s": seconds} | throughput_metrics(config, "rollout", seconds, samples, tokens, flops)
        return figures | matrix_metrics(config, figures, clock) | decode_metrics(config, asked, said, seconds, models)

    return once


def score_round(config: Config, models: Models) -> Round:
    """Scoring a rollout, which is made anew for it each time and not counted."""
    trainer = build_trainer(config, models)
    return lambda: phase_metrics(config, "score", trainer.generate_experience(models.prompts), trainer.clock)


def train_round(config: Config, models: Models) -> Round:
    """Make a round of the updates on a rollout that was made once."""
    trainer = build_trainer(config, models)
    made: list[Experience] = []

    def once() -> dict[str, float]:
        if not made:
            made.append(trainer.generate_experience(models.prompts))
        trainer.clock = Clock()
        train(trainer, made[0])
        return phase_metrics(config, "train", made[0], trainer.clock)

    return once


def step_round(config: Config, models: Models) -> Round:
    """Return a whole step: a rollout, its scoring, its updates."""
    trainer = build_trainer(config, models)

    def once() -> dict[str, float]:
        experience = trainer.generate_experience(models.prompts)
        train(trainer, experience)
        figures = describe_speed(config, experience, trainer.clock)
        figures |= matrix_metrics(config, figures, trainer.clock) | busy_metrics(trainer.clock)
        asked, said = experience.prompt_mask.sum(1).tolist(), experience.mask.sum(1).tolist()
        return figures | decode_metrics(config, asked, said, figures["time/rollout_s"], models)

    return once


def build_trainer(config: Config, models: Models) -> Trainer:
    """Return our trainer, or the baseline's."""
    if config.bench.peer is None:
        return DeepSpeedPPOTrainer(models.engine, config)
    return DeepSpeedChatTrainer(models.engine, config)


def train(trainer: Trainer, experience: Experience) -> None:
    """Run the updates; raises FloatingPointError if they were left out, since that takes no time."""
    trainer.train_rlhf(experience)
    if trainer.metrics["train/nonfinite"]:
        raise FloatingPointError(f"a loss or score of {trainer.args.precision.dtype} random weights is not finite")


def phase_metrics(config: Config, name: str, experience: Experience, clock: Clock) -> dict[str, float]:
    """Return the figures of one phase."""
    unknown = dict.fromkeys(PHASES, math.inf)
    figures = describe_speed(config, experience, Clock(unknown | clock.seconds))
    figures |= matrix_metrics(config, figures, clock)
    return {key: value for key, value in figures.items() if key.partition("/")[2].startswith((f"{name}_", "matrix_"))}


def busy_metrics(clock: Clock) -> dict[str, float]:
    """Return the seconds of a step that the device worked."""
    return {"time/busy_s": maximum(sum(clock.busy.values()))}


def matrix_metrics(config: Config, figures: dict[str, float], clock: Clock) -> dict[str, float]:
    """Return the rate of the device's matrix products, and the share of it that each phase reaches, both over the seconds
    that the device worked: of a CPU that others use too, wall time would tell how much they do."""
    rate = matrix_tflops(device(config), DTYPES[config.precision.dtype])
    found = {"throughput/matrix_tflops": rate}
    for name in PHASES:
        if name in clock.busy:
            operations = figures[f"throughput/{name}_tflops_per_gpu"] * figures[f"time/{name}_s"]
            found[f"throughput/{name}_matrix_share"] = operations / maximum(clock.busy[name]) / rate
    return found


def decode_metrics(config: Config, asked: list[int], said: list[int], seconds: float, models: Models) -> dict[str, float]:
    """Time of a decode step and the bandwidth it reaches, from the lengths of this rank's prompts and responses and the
    rollout's `seconds`: (bytes of planner/decode.py) / seconds, per device, beside what a copy reaches. The limit is the
    time that reading those bytes takes at the copy's bandwidth."""
    steps, copy = maximum(max(said)), copy_gb_s(models.engine.device)
    (read,) = total(decode_bytes(config.model, config.precision.dtype, asked, said))
    reached = read / world() / seconds / 1e9
    return {
        "time/decode_step_ms": 1e3 * seconds / steps, "time/decode_limit_ms": 1e3 * seconds / steps * reached / copy,
        "throughput/decode_gb_s": reached, "throughput/copy_gb_s": copy, "throughput/decode_share": reached / copy,
    }  # fmt: skip
