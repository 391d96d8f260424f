"""Measure how fast a configuration is, beside what people do today, in one run.

    python -m rlhf bench model=opt-1.3b hardware=h100           # a step of PPO: rollout, scoring, updates
    python -m rlhf bench bench.what=rollout model=opt-125m      # rollouts alone, engine by engine (bench.engines=[...])
    python -m rlhf bench bench.what=train bench.lengths=real    # one phase alone (or score); answers of many lengths
    python -m rlhf bench bench.what=sft bench.lengths=real      # a step of fine-tuning (or reward), beside a padded one
    python -m rlhf bench bench.what=stages hardware=a100-80g    # a training step of each of the three stages
    python -m rlhf bench bench.peer=trl bench.lengths=real      # a step of RLOO and of GRPO, each beside TRL's
    python -m rlhf bench --table                                # the stored results as the table of docs/performance.md

Every key and group of `python -m rlhf --help` can be given; they join the recipe, DeepSpeed-Chat's benchmark, which is in
experiments/bench.yaml. Models have random weights of the shapes in conf/model: nothing is downloaded. The baseline is
DeepSpeed-Chat's step 3 (rlhf/stages/bench/deepspeed_chat.py): transformers' generate, prompts padded to the longest that
may be, logits of all positions, a pass of its own for each model. TRL's trainers (bench.peer=trl; pip install 'rlhf[trl]')
read our tokens and ask our reward model (rlhf/stages/bench/trl.py). A step of sft or reward is beside one that is padded.
Variants take turns, after a round of each that warms up; medians are told, and the result is stored in outputs/bench, with
the machine's load at the end (the mean number of waiting processes in the last 1, 5 and 15 minutes).

One process, one device; several are measured, without the baseline, by a stage: `python -m rlhf +experiments=bench`.
"""

import os
import re
import shlex
import sys
import tempfile
import zlib
from collections.abc import Collection
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rlhf.catalog.stage import kind_of
from rlhf.cli.prepare import load_config
from rlhf.config.checks import check, check_devices, join_or
from rlhf.config.compose import config_root
from rlhf.config.derive import policy_stage, ranks
from rlhf.config.errors import ConfigError
from rlhf.config.keys import get_key
from rlhf.config.schema import Config
from rlhf.config.secrets import mask
from rlhf.config.terminal import Terminal
from rlhf.experiment.fingerprint import fingerprint
from rlhf.experiment.store import write_json
from rlhf.planner.batches import batches
from rlhf.stages.bench import measured_stages
from rlhf.stages.bench.metrics import TIME_OF
from rlhf.stages.bench.table import BASELINE, build_table, table

if TYPE_CHECKING:
    from rlhf.stages.bench.compare import Measured

RESULTS = "experiments/results"
FLAGS = ("-h", "--help", "--table")
TRL_ALGORITHMS = ("rloo", "grpo")
# Work of a step that neither peer's has.
OURS_ALONE = ("ppo.ptx_coef", "ppo.dynamic_sampling")


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for; returns the exit code: 0, 2 for bad input, 130 if interrupted."""
    console = Terminal(soft_wrap=True) if Terminal().is_terminal else Terminal(width=200)
    try:
        if "--table" in arguments:
            console.print(table(config_root() / RESULTS), soft_wrap=True)
        elif {"-h", "--help"} & set(arguments):
            console.print(__doc__, soft_wrap=True)
        else:
            config = read_configuration(arguments)
            measure(config, list_groups(config, arguments), console)
    except ConfigError as error:
        Terminal(stderr=True, soft_wrap=True).print(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def read_configuration(arguments: list[str]) -> Config:
    """Return the recipe with what was typed. Raises ConfigError."""
    if flags := [word for word in arguments if word.startswith("-")]:
        problem = "this command measures one configuration"
        raise ConfigError("argument", flags[0], problem, "sweep a benchmark with `python -m rlhf -m +sweeps=systems`")
    if stage := next((word for word in arguments if re.match(r"\+*stages?=", word)), None):
        fix = "leave it out; bench.what=stages measures a step of each stage"
        raise ConfigError("stage", stage.partition("=")[2], "this command runs no stage", fix)
    config = compose_benchmark(arguments)
    if ranks(config) > 1:
        key = "nodes" if config.hardware.nodes > 1 else "gpus_per_node"
        problem, typed = f"variants take turns in one process, not in {ranks(config)}", shlex.join(arguments)
        fix = f"measure with `python -m rlhf +experiments=bench {typed}`"
        raise ConfigError(f"hardware.{key}", getattr(config.hardware, key), problem, fix)
    check_devices(config)
    return config


def compose_benchmark(arguments: list[str]) -> Config:
    """Return the configuration of experiments/bench.yaml, joined by the user's own preset, and overrides. Raises
    ConfigError."""
    presets, overrides = ["bench"], []
    for word in arguments:
        preset = re.fullmatch(r"\+experiments=\[?([\w.,-]+)\]?", word)
        presets += preset[1].split(",") if preset else []
        overrides += [] if preset else [word]
    return load_config(f"+experiments=[{','.join(dict.fromkeys(presets))}]", *overrides)


def list_groups(config: Config, arguments: list[str]) -> list[Config]:
    """Return the configurations whose variants take turns, group by group: what was typed, or beside TRL's trainers the
    algorithm that was typed, or RLOO and GRPO. Raises ConfigError for what those do not do."""
    if config.bench.peer != "trl":
        return [config]
    typed = [word for word in arguments if word.startswith("algorithm=")]
    found = [read_configuration([*arguments, f"algorithm={name}"]) for name in TRL_ALGORITHMS] if not typed else [config]
    for own in found:
        check_trl(own)
    return found


def check_trl(config: Config) -> None:
    """Raise ConfigError where TRL is not installed, or its trainers do not do what the configuration asks for."""
    if find_spec("trl") is None:
        raise ConfigError("bench.peer", "trl", "it needs the package trl", "pip install 'rlhf[trl]'")
    if config.bench.what != "step3":
        raise ConfigError("bench.what", config.bench.what, "TRL's trainers are measured by whole steps", "leave it out")
    if config.algorithm not in TRL_ALGORITHMS:
        fix = f"try {join_or([f'algorithm={name}' for name in TRL_ALGORITHMS])}"
        raise ConfigError("algorithm", config.algorithm, "no trainer of TRL's is measured beside it", fix)
    if config.lora.rank or config.zero.stage:
        key, value = ("lora.rank", config.lora.rank) if config.lora.rank else ("zero.stage", config.zero.stage)
        raise ConfigError(key, value, "TRL's trainers are measured with all weights on one device", "leave it out")


def measure(config: Config, groups: list[Config], console: Console) -> None:
    """Measure, print, and store."""
    listed = [list_variants(group) for group in groups]
    configs = {name: own for variants, _ in listed for name, own in variants.items()}
    left_out = {name: reason for _, reasons in listed for name, reason in reasons.items()}
    from rlhf.runtime.distributed import leave, start

    start(config)  # before anything imports deepspeed: it looks for its device then
    import torch

    from rlhf.tracking.environment import environment

    measured: dict[str, Measured] = {}
    for group, (variants, _) in zip(groups, listed, strict=True):
        measured |= compare_variants(group, variants) if group.bench.what != "stages" else measure_stages(group)
    leave()
    left_out |= {name: str(result.problem) for name, result in measured.items() if result.refused}
    for engine, reason in left_out.items():
        console.print(f"{engine} is left out: {reason}")
    found = {
        "command": mask(shlex.join(["python", "-m", "rlhf", "bench", *sys.argv[1:]])), "date": str(date.today()),
        "recipe": describe_recipe(config) | {"threads": torch.get_num_threads()},
        "memory": describe_memory(config), "left_out": left_out, "load": os.getloadavg(),
        "variants": {
            name: variant_entry(name, configs.get(name, with_peer(config, None)), result, set(measured))
            for name, result in measured.items() if not result.refused
        },
    }  # fmt: skip
    console.print(build_table(found))
    directory = Path(config.output_root) / "bench" / file_name(config, found)
    write_json(directory, found | environment(config))
    console.print(f"{directory}", soft_wrap=True)


def list_variants(config: Config) -> tuple[dict[str, Config], dict[str, str]]:
    """Return what is measured, by name, the peer first, which has `bench.peer`; and the engines that cannot serve the
    configuration, with the reason: those that the user names are refused instead. Raises ConfigError."""
    own, rollout = with_peer(config, None), config.bench.what == "rollout"
    if config.bench.peer is not None and config.bench.what in ("step3", "train"):
        check_work(config)
    if config.bench.peer == "trl":
        return {f"trl {config.algorithm}": config, config.algorithm: own}, {}
    base = {} if config.bench.peer is None else {BASELINE: with_engine_and_packing(config, "hf", "none")}
    if not rollout:
        return base | {"ours": own}, {}
    asked, found, left_out = config.bench.engines, dict[str, Config](), {}
    for engine in dict.fromkeys(asked or (config.rollout.engine, "hybrid", "paged")):
        try:
            found[engine] = with_engine_and_packing(own, engine, config.ppo.packing)
            check(found[engine])
        except ConfigError as error:
            if asked:
                raise
            found.pop(engine)
            left_out[engine] = str(error)
    return base | {name: found[name] for name in found if name != "hf"}, left_out


def check_work(config: Config) -> None:
    """Raise ConfigError where a step of ours would do work beside the peer's."""
    for key in OURS_ALONE:
        if value := get_key(config, key):
            fix = "leave it out, or measure ours alone with bench.peer=null"
            raise ConfigError(key, value, f"a step of bench.peer={config.bench.peer} does no such work", fix)


def with_peer(config: Config, peer: str | None) -> Config:
    """Return the configuration of a step of a peer's, or of our own."""
    return replace(config, bench=replace(config.bench, peer=peer))


def with_engine_and_packing(config: Config, engine: str, packing: str) -> Config:
    """Return the configuration with a rollout engine and a way of padding, in all stages."""
    return replace(
        config, rollout=replace(config.rollout, engine=engine), ppo=replace(config.ppo, packing=packing),
        sft=replace(config.sft, packing=packing), reward=replace(config.reward, packing=packing),
    )  # fmt: skip


def compare_variants(config: Config, configs: dict[str, Config]) -> "dict[str, Measured]":
    """Measure the variants of a step, or of a phase of it, in turns on the same models."""
    from rlhf.stages.bench.compare import compare
    from rlhf.stages.bench.run import benchmarked_stages

    optional = [name for name in configs if name != BASELINE] if config.bench.what == "rollout" else []
    optional = [] if config.bench.engines else optional
    with tempfile.TemporaryDirectory() as directory:
        (rounds,) = benchmarked_stages(config).values()
        return compare(configs, lambda: rounds(config, Path(directory) / "random"), config.bench.repeats, optional)


def measure_stages(config: Config) -> "dict[str, Measured]":
    """Measure a training step of each stage, one stage after another; a stage that does not fit the GPU says so."""
    import torch

    from rlhf.stages.bench.compare import Failed, Measured, interleave
    from rlhf.stages.bench.run import benchmarked_stages

    config, found = with_peer(config, None), dict[str, Measured]()
    with tempfile.TemporaryDirectory() as directory:
        for name, rounds in benchmarked_stages(config).items():
            try:
                with rounds(config, Path(directory) / "random") as make_round:
                    once = {name: make_round(config)}
                    found[name] = Measured(interleave(once, config.bench.repeats, False)[name])
            except (Failed, torch.OutOfMemoryError):
                found[name] = Measured(problem="out of memory")
    return found


def variant_entry(name: str, own: Config, measured: "Measured", names: Collection[str]) -> dict[str, Any]:
    """Return a variant as it is stored: how it works, its medians, its main figure in every round, and whose it is measured
    beside, of these names."""
    rounds = [figures[TIME_OF[own.bench.what]] for figures in measured.rounds]
    beside = next((other for other in (f"trl {name}", BASELINE) if other in names and other != name), None)
    return {
        "how": describe_way(name, own), "problem": measured.problem, "median": measured.median, "rounds": rounds,
        "beside": beside if own.bench.peer is None else None,
    }  # fmt: skip


def describe_way(name: str, own: Config) -> str:
    """Tell in a few words how a variant works."""
    copies = f", {own.rollout.samples_per_prompt} responses a prompt"
    if own.bench.peer == "trl":
        return f"TRL {version('trl')}{copies}"
    engine = f"{own.rollout.engine} rollouts"
    stage = name if own.bench.what == "stages" else measured_stages(own)[0]
    samples = kind_of(stage).samples_responses
    if own.bench.peer is not None and samples:
        return "transformers' generate" if own.bench.what == "rollout" else "DeepSpeed-Chat's"
    padding = {"none": "padded", "length": "by length", "packed": "packed"}[getattr(own, stage).packing]
    how = f"{engine}, {padding}" if samples and own.bench.what not in ("score", "train") else padding
    how = engine if own.bench.what == "rollout" else how
    if own.bench.what == "step3":
        how += ", one forward pass" if own.ppo.reuse_forward else ""
        how += ", the sampler's log-probabilities" if own.ppo.old_logprobs == "sampler" else ""
    return how + copies * (name == own.algorithm)


def describe_recipe(config: Config) -> dict[str, Any]:
    """Describe what the metrics depend on, beside the machine and the versions."""
    stages = measured_stages(config)
    stage = stages[0] if len(stages) == 1 else policy_stage(config)
    samples = kind_of(stage).samples_responses
    batch = config.ppo.rollout_batch_size if samples else getattr(config, stage).batch_size
    longest = config.rollout.max_new_tokens if samples else config.data.max_response_tokens
    return {
        "what": config.bench.what, "lengths": config.bench.lengths, "repeats": config.bench.repeats,
        "model": config.model.name, "reward_model": config.reward_model.name, "dtype": config.precision.dtype,
        "zero": config.zero.stage, "offload": config.zero.offload_optimizer or config.zero.offload_param,
        "lora": config.lora.rank, "batch": batch, "micro_batch": batches(config, stage).micro,
        "prompt_tokens": config.data.max_prompt_tokens, "response_tokens": longest,
        "update_epochs": config.ppo.update_epochs, "seed": config.seed, "peer": config.bench.peer,
    }  # fmt: skip


def describe_memory(config: Config) -> str:
    """Say whose memory is told."""
    return (
        "memory/peak_gib: of the whole process during the variant's first turn" if config.hardware.device == "cpu"
        else "memory/peak_gib: allocated on the GPU during the variant's first turn"
    )  # fmt: skip


def file_name(config: Config, found: dict[str, Any]) -> str:
    """Return a name that tells what was measured, where and when; other settings on one day get another checksum."""
    ways = [variant["how"] for variant in found["variants"].values()]
    told = f"{fingerprint(config, config.stages[0], {})} {found['recipe']} {ways}"
    what = "trl" if config.bench.peer == "trl" else config.bench.what
    words = f"bench-{what}-{config.bench.lengths}-{config.model.name}-{config.hardware.gpu}"
    return f"{words}-{date.today()}-{zlib.crc32(told.encode()):08x}.json".lower().replace(" ", "-")
