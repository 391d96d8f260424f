"""Measure how time grows: with the batch, the lengths, the width of the models, the ranks, the records and the points.

    python -m rlhf growth                                  # all six axes, on small models: ten minutes of two cores
    python -m rlhf growth batch length model=opt-125m      # some of them, of another model (any key and group)
    python -m rlhf growth --table                          # the stored results as the tables of docs/growth.md

`batch`, `length` and `width` are steps of PPO in this process, of 16 sequences of 64 + 64 tokens where the axis says no
other, and `ranks` the same step as a stage. `records` is `python -m rlhf data`, `points` is `python -m rlhf plan -m`; keys
that are given do not change those two. On the CPU the seconds are the processor's, but for ranks, which are there to save
time. Steps take turns, bench.repeats times (3) after a round that warms up; a value's time is the shortest of its rounds.
The result is stored in outputs/bench, with the machine's load.
"""

import json
import os
import random
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from rlhf.cli.arguments import run_verb
from rlhf.cli.bench import RESULTS, read_configuration
from rlhf.config.compose import config_root
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.config.secrets import mask
from rlhf.config.terminal import Terminal
from rlhf.experiment.stage_directory import find_stages
from rlhf.experiment.store import write_json
from rlhf.planner.ppo import longest_step
from rlhf.stages.bench.growth import Row, Series, make_table, make_tables, store_series

# What is measured where an axis says nothing else: small, and of the lengths that are asked for.
BASE = (
    "ppo.rollout_batch_size=16", "ppo.batch_size=16", "data.max_prompt_tokens=64", "data.max_response_tokens=64",
    "rollout.max_new_tokens=64", "bench.repeats=3",
)  # fmt: skip
# The values of each axis.
VALUES = {
    "batch": (4, 8, 16, 32, 64, 128), "length": (16, 32, 64, 128, 256, 512), "width": (32, 64, 128, 256, 512),
    "ranks": (1, 2), "records": (1_000, 3_000, 10_000, 30_000, 100_000), "points": (1, 10, 100, 1_000),
}  # fmt: skip
PHASES = {"rollout": "time/rollout_s", "scoring": "time/score_s", "updates": "time/train_s"}
PROCESSOR, WALL = "processor seconds", "seconds"
# Records are pairs of about 45 tokens of prompt and 35 of each response.
WORDS = ("the", "red", "blue", "kettle", "lamp", "is", "good", "quick", "very", "house", "wipe", "clean", "with", "water")
PROMPT_WORDS, RESPONSE_WORDS, HELDOUT = 40, (10, 60), 10


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for; returns the exit code."""
    return run_verb(measure_growth, arguments, str(__doc__))


def measure_growth(arguments: list[str], console: Terminal) -> None:
    """Measure, print and store; or print what is stored. Raises ConfigError."""
    if "--table" in arguments:
        results = sorted((config_root() / RESULTS).glob("growth-*.json"))
        console.print("\n\n".join(make_tables(json.loads(file.read_text())) for file in results), soft_wrap=True)
        return
    axes, words = read_axes(arguments)
    config = read_configuration([*BASE, *words])
    names = [] if axes == list(VALUES) else axes
    name = "-".join(["growth", *names, config.model.name, config.hardware.gpu, str(date.today())])
    path = Path(config.output_root) / "bench" / f"{name}.json".lower().replace(" ", "-")
    found: list[Series] = []
    for axis in axes:
        for series in MEASURES[axis](words, VALUES[axis]):
            console.print(f"{make_table(series)}\n", soft_wrap=True)
            found.append(series)
        write_json(path, describe_result(config, found))  # what is measured so far stays
    console.print(f"{path}", soft_wrap=True)


def describe_result(config: Config, found: list[Series]) -> dict[str, Any]:
    """Return what was measured, with what it was measured on, as it is stored."""
    from rlhf.tracking.environment import environment

    told = {
        "command": mask(shlex.join(["python", "-m", "rlhf", "growth", *sys.argv[1:]])), "date": str(date.today()),
        "model": config.model.name, "threads": os.environ.get("OMP_NUM_THREADS"), "load": os.getloadavg(),
        "series": store_series(found),
    }  # fmt: skip
    return told | environment(config)


def read_axes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the axes that are named, all if none is, and the overrides. Raises ConfigError."""
    words = [word for word in arguments if "=" in word or word.startswith("-")]
    axes = [word for word in arguments if word not in words]
    if unknown := [axis for axis in axes if axis not in VALUES]:
        raise ConfigError("axis", unknown[0], "there is no such axis", f"choose some of {', '.join(VALUES)}")
    if what := next((word for word in words if word.startswith("bench.what=")), None):
        raise ConfigError("bench.what", what.partition("=")[2], "this command measures steps of PPO", "leave it out")
    return axes or list(VALUES), words


# -- steps
def size_batch(value: int) -> list[str]:
    """Return the overrides of a batch."""
    return [f"ppo.rollout_batch_size={value}", f"ppo.batch_size={value}"]


def size_lengths(value: int) -> list[str]:
    """Return the overrides of prompts and answers of so many tokens each."""
    return [f"{key}={value}" for key in ("data.max_prompt_tokens", "data.max_response_tokens", "rollout.max_new_tokens")]


def size_width(value: int) -> list[str]:
    """Return the overrides of two models of a width, with heads of 16 elements."""
    shape = {"hidden_size": value, "intermediate_size": 4 * value, "num_attention_heads": value // 16, "head_dim": 16}
    return [f"{model}.{key}={number}" for model in ("model", "reward_model") for key, number in shape.items()]


def measure_batches(words: list[str], values: Iterable[int]) -> Iterator[Series]:
    """Measure steps of several batches."""
    rows, clock = measure_steps(words, {value: size_batch(value) for value in values}, lambda value, config: value)
    yield Series("Batch: a step of PPO", "sequences", "sequences", clock, rows)


def measure_lengths(words: list[str], values: Iterable[int]) -> Iterator[Series]:
    """Measure steps of several lengths."""
    rows, clock = measure_steps(words, {value: size_lengths(value) for value in values}, lambda value, config: 2 * value)
    yield Series("Lengths: a step of PPO", "tokens of a prompt, and of an answer", "tokens", clock, rows)


def measure_widths(words: list[str], values: Iterable[int]) -> Iterator[Series]:
    """Measure steps of models of several widths, by the operations that they take."""
    rows, clock = measure_steps(words, {value: size_width(value) for value in values}, count_teraflops)
    yield Series("Width: a step of PPO", "hidden size of all models", "TFLOP", clock, rows)


def count_teraflops(value: int, config: Config) -> float:
    """Return the operations of a step, in 10^12."""
    return sum(longest_step(config).values()) / 1e12


def measure_steps(
    words: list[str], overrides: dict[int, list[str]], amount: Callable[[int, Config], float]
) -> tuple[list[Row], str]:
    """Measure steps of PPO that differ by these overrides, in turns; returns a row for each, and whose seconds they are."""
    configs = {value: read_configuration([*BASE, *words, *own]) for value, own in overrides.items()}
    from rlhf.runtime.distributed import start

    start(next(iter(configs.values())))  # before anything imports deepspeed: it looks for its device then
    from rlhf.runtime.device import on_gpu
    from rlhf.stages.bench.compare import medians
    from rlhf.stages.bench.run import ppo_rounds

    clock = time.perf_counter if on_gpu() else time.process_time
    seconds: dict[int, list[float]] = {value: [] for value in configs}
    figures: dict[int, list[dict[str, float]]] = {value: [] for value in configs}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rounds = {
            value: stack.enter_context(ppo_rounds(config, directory / str(value)))(config)
            for value, config in configs.items()
        }
        for number in range(next(iter(configs.values())).bench.repeats + 1):
            for value, once in rounds.items():
                began = clock()
                told = once()
                if number > 0:
                    seconds[value].append(clock() - began)
                    figures[value].append(told)
    rows = []
    for value, config in configs.items():
        median = medians(figures[value])
        shares = {phase: median[name] / sum(median[each] for each in PHASES.values()) for phase, name in PHASES.items()}
        rows.append(Row(value, amount(value, config), seconds[value], shares))
    return rows, WALL if on_gpu() else PROCESSOR


def measure_ranks(words: list[str], values: Iterable[int]) -> Iterator[Series]:
    """Measure a step on several ranks, as a stage: each has its share of the batch."""
    rows = []
    for value in values:
        with tempfile.TemporaryDirectory() as root:
            own = f"hardware.gpus_per_node={value}", f"output_root={root}", "launcher=local", "launcher.threads=1"
            run_program(["+experiments=bench", *BASE, *words, *own])
            (stage,) = find_stages(Path(root))
            steps = [row["time/step_s"] for row in stage.metrics() if row is not None]
        rows.append(Row(value, 1 / value, steps))
    yield Series("Ranks: a step of PPO, its batch shared", "ranks", "share of the batch", WALL, rows)


# -- commands
def run_program(words: list[str]) -> float:
    """Run `python -m rlhf` and return the processor seconds of its processes. Raises ConfigError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "rlhf", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise ConfigError("command", shlex.join(words[:2]), f"it failed: {' '.join(said)}", "run it by itself")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_records(words: list[str], values: Iterable[int]) -> Iterator[Series]:
    """Measure `python -m rlhf data` on pairs for the reward model: the first time it trains a tokenizer and encodes them,
    the second time it opens what is there."""
    first, second = [], []
    for value in values:
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            write_pairs(root / "train.jsonl", value)
            write_pairs(root / "heldout.jsonl", HELDOUT)
            files = [f"data.files.{part}={root / part}.jsonl" for part in ("train", "heldout")]
            lengths = "data.max_prompt_tokens=128", "data.max_response_tokens=128"
            command = ["data", "data=files", *files, *lengths, "stage=reward", f"output_root={root}", "--samples", "0"]
            first.append(Row(value, value, [run_program(command)]))
            second.append(Row(value, value, [run_program(command)]))
    yield Series("Records: encoded by `python -m rlhf data`", "pairs", "pairs", PROCESSOR, first)
    yield Series("Records: opened by the same command, typed again", "pairs", "pairs", PROCESSOR, second)


def write_pairs(path: Path, count: int) -> None:
    """Write so many prompts with two responses each, of random words."""
    draw = random.Random(count)

    def say(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    with path.open("w") as stream:
        for number in range(count):
            prompt = f"{number}: {say(PROMPT_WORDS)}"
            answers = {name: say(draw.randint(*RESPONSE_WORDS)) for name in ("chosen", "rejected")}
            stream.write(json.dumps({"prompt": prompt, **answers}) + "\n")


def measure_points(words: list[str], values: Iterable[int]) -> Iterator[Series]:
    """Measure the planning of sweeps of PPO over so many KL coefficients."""
    rows = []
    for value in values:
        swept = ",".join(f"{number / 1e5:.5f}" for number in range(1, value + 1))
        rows.append(Row(value, value, [run_program(["plan", "-m", f"ppo.kl_coef={swept}", "--json"])]))
    yield Series("Points: `python -m rlhf plan -m ppo.kl_coef=…`", "points", "points", PROCESSOR, rows)


MEASURES: dict[str, Callable[[list[str], Iterable[int]], Iterator[Series]]] = {
    "batch": measure_batches, "length": measure_lengths, "width": measure_widths, "ranks": measure_ranks,
    "records": measure_records, "points": measure_points,
}  # fmt: skip
