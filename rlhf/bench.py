"""Measure how fast a step of PPO is, beside what people do today, in one run.

    python -m rlhf.bench model=opt-1.3b reward_model=opt-350m hardware=h100     # a step: rollout, scoring, updates
    python -m rlhf.bench bench.what=rollout model=opt-125m                      # rollouts alone, engine by engine
    python -m rlhf.bench --table                                                # the stored results as a table

Models have random weights of the shapes in conf/model: nothing is downloaded. The baseline samples with transformers'
generate and pads every batch to its longest sequence; all else is the same. Variants take turns, and medians are told.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf.config.compose import config_root
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.experiment.store import write_json
from rlhf.prepare import load_config

# DeepSpeed-Chat's benchmark settings (its README): 256 tokens of prompt and 256 of answer, one epoch of PPO. What the user
# gives comes later and wins.
RECIPE = (
    "data.max_prompt_tokens=256", "rollout.max_new_tokens=256", "data.max_response_tokens=256", "rollout.fixed_length=true",
    "ppo.eos_penalty=null", "ppo.update_epochs=1", "ppo.rollout_batch_size=32", "ppo.batch_size=32",
    "ppo.learning_rate=1e-9", "ppo.critic_learning_rate=1e-9", "ppo.ratio_tolerance=null",
)  # fmt: skip
VARIANTS = {"hybrid": ("hybrid", "length"), "baseline": ("hf", "none")}
RESULTS = "experiments/results"


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    console = Console(width=None if Console().is_terminal else 140)
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["--table"]:
            console.print(table(config_root() / RESULTS), soft_wrap=True, markup=False, highlight=False)
            return 0
        if {"-h", "--help"} & set(arguments):
            console.print(__doc__, markup=False)
            return 0
        config = load_config("stage=ppo", *RECIPE, *arguments)
        found = measure(config)
    except ConfigError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False)
        return 2
    show(found, console)
    name = f"bench-{config.bench.what}-{config.bench.lengths}-{config.model.name}-{config.hardware.gpu}-{date.today()}.json"
    place = Path(config.output_root) / "bench" / name.lower().replace(" ", "-")
    write_json(place, found)
    console.print(f"{place}", soft_wrap=True)
    return 0


def measure(config: Config) -> dict[str, Any]:
    """All figures of a run, with everything they depend on."""
    from rlhf.engine.distributed import start

    start(config)
    from rlhf.track.environment import environment

    with tempfile.TemporaryDirectory() as place:
        engine, tokenizer = models(config, Path(place))
    run = {"rollout": measure_rollouts, "step": measure_steps}[config.bench.what]
    figures = run(config, engine, tokenizer)
    engine.release()
    recipe = {
        "what": config.bench.what, "lengths": config.bench.lengths, "repeats": config.bench.repeats,
        "model": config.model.name, "reward_model": config.reward_model.name, "dtype": config.precision.dtype,
        "zero": config.zero.stage, "lora": config.lora.rank, "batch": config.ppo.rollout_batch_size,
        "prompt_tokens": config.data.max_prompt_tokens, "response_tokens": config.rollout.max_new_tokens,
        "update_epochs": config.ppo.update_epochs,
    }  # fmt: skip
    command = "python -m rlhf.bench " + " ".join(sys.argv[1:])
    return {"command": command, "date": str(date.today()), "recipe": recipe, "figures": figures} | environment(config)


def models(config: Config, place: Path) -> tuple[Any, Any]:
    """Actor, reference, critic and reward model of the configuration's shapes, with random weights."""
    from rlhf import DeepSpeedRLHFEngine
    from rlhf.models.load import DTYPES, new_policy, new_scorer
    from rlhf.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([f"{word} text to measure with" for word in range(1000)], config.data.tokenizer_vocabulary)
    whole, dtype = replace(config.zero, stage=0), DTYPES[config.precision.dtype]
    for name, build, model in (("actor", new_policy, config.model), ("reward", new_scorer, config.reward_model)):
        built: Any = build(model, config, tokenizer, whole, 0.0)
        built.to(dtype)
        getattr(built, "classifier", built).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return DeepSpeedRLHFEngine(str(place / "actor"), str(place / "reward"), tokenizer, 10**6, config), tokenizer


def batch_of(config: Config, device: Any) -> Any:
    """Prompts and the lengths of their answers: all as long as they may be, or drawn from a log-normal distribution whose
    median is a third of that (answers of assistants are so: a long tail over a short middle)."""
    import numpy as np
    import torch

    from rlhf.data.tokens import prompt_batch

    generator, count = np.random.default_rng(config.seed), config.ppo.rollout_batch_size

    def drawn(most: int) -> list[int]:
        if config.bench.lengths == "fixed":
            return [most] * count
        return [int(n) for n in np.clip(generator.lognormal(np.log(most / 3), 0.7, count), 4, most)]

    prompts = [generator.integers(5, 300, length).tolist() for length in drawn(config.data.max_prompt_tokens)]
    limits = torch.tensor(drawn(config.rollout.max_new_tokens), device=device)
    return replace(prompt_batch(prompts, list(range(count)), 0, device), limits=limits)


def measure_steps(config: Config, engine: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Seconds of each phase of a step of each variant, its sequences per second and memory."""
    from rlhf import DeepSpeedPPOTrainer
    from rlhf.ppo.report import describe_speed
    from rlhf.track.throughput import peak_memory_gib

    trainers = {
        name: DeepSpeedPPOTrainer(engine, with_variant(config, rollout, packing))
        for name, (rollout, packing) in VARIANTS.items()
    }
    batch = batch_of(config, engine.device)
    told: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    for _ in range(config.bench.repeats + 1):
        for name, trainer in trainers.items():
            experience = trainer.generate_experience(batch)
            trainer.train_rlhf(experience)
            told[name].append(describe_speed(config, experience, trainer.clock) | {"memory/peak_gib": peak_memory_gib()})
    return {name: medians(steps[1:]) for name, steps in told.items()}


def measure_rollouts(config: Config, engine: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Seconds of a rollout of each engine, per decoded token, and the bandwidth that this takes."""
    from rlhf.data.streams import uniforms
    from rlhf.rollout import generate
    from rlhf.track.throughput import Clock

    batch = batch_of(config, engine.device)
    random = uniforms(config.seed, "bench", 0, batch.samples, config.rollout.max_new_tokens)
    told: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    weights = sum(p.numel() * p.element_size() for p in engine.actor.module.parameters())
    limit = copy_gb_s(engine.device)
    for _ in range(config.bench.repeats + 1):
        for name, (kind, packing) in VARIANTS.items():
            clock = Clock()
            with clock.phase("rollout"):
                responses = generate(engine.actor, batch, random, tokenizer, with_variant(config, kind, packing).rollout)
            seconds, steps = clock.seconds["rollout"], responses.tokens.size(1)
            reached = weights * steps / seconds / 1e9
            told[name].append({
                "time/rollout_s": seconds, "ms_per_decode_step": 1e3 * seconds / steps,
                "tokens_per_s": float(responses.lengths.sum()) / seconds,
                "weights_gb_s": reached, "copy_gb_s": limit, "share_of_copy": reached / limit,
            })  # fmt: skip
    return {name: medians(rounds[1:]) for name, rounds in told.items()}


def with_variant(config: Config, engine: str, packing: str) -> Config:
    """The configuration with a rollout engine and a way of padding."""
    return replace(config, rollout=replace(config.rollout, engine=engine), ppo=replace(config.ppo, packing=packing))


def copy_gb_s(device: Any) -> float:
    """What the device's memory delivers when a large tensor is copied: bytes read, in GB per second, median of ten."""
    import torch

    from rlhf.track.throughput import synchronize

    source = torch.empty(2**28 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def once() -> float:
        synchronize()
        began = time.perf_counter()
        target.copy_(source)
        synchronize()
        return source.numel() / (time.perf_counter() - began) / 1e9

    return statistics.median(once() for _ in range(10))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}


def show(found: dict[str, Any], console: Console) -> None:
    """A row per figure, a column per variant, and their ratio."""
    figures, recipe = found["figures"], found["recipe"]
    title = ", ".join(f"{key} {value}" for key, value in recipe.items())
    shown = Table(title=title, title_justify="left")
    shown.add_column("median")
    for name in figures:
        shown.add_column(name, justify="right")
    shown.add_column("ratio", justify="right")
    first, second = figures.values()
    for name in first:
        ratio = f"{first[name] / second[name]:.2f}" if second[name] else ""
        shown.add_row(name, f"{first[name]:.4g}", f"{second[name]:.4g}", ratio)
    console.print(shown)


def table(place: Path) -> str:
    """Stored results as Markdown, one row each."""
    rows = ["| device | recipe | hybrid | baseline | times faster | date, versions |", "|---|---|---|---|---|---|"]
    for file in sorted(place.glob("bench-*.json")):
        found = json.loads(file.read_text())
        recipe, key = found["recipe"], "time/step_s" if found["recipe"]["what"] == "step" else "time/rollout_s"
        fast, slow = (found["figures"][name][key] for name in VARIANTS)
        what = (
            f"{recipe['what']}, {recipe['model']} with {recipe['reward_model']}, {recipe['dtype']}, {recipe['batch']} x "
            f"({recipe['prompt_tokens']} + {recipe['response_tokens']}) tokens, {recipe['lengths']} lengths"
        )
        device = (found["gpus"] or [found["processor"]])[0]
        versions = f"torch {found['packages']['torch']}, transformers {found['packages']['transformers']}"
        times = f"{fast:.3g} s | {slow:.3g} s | {slow / fast:.1f}"
        rows.append(f"| {device} | {what} | {times} | {found['date']}, {versions} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
