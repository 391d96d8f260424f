"""Every cross-check of a configuration. Nothing here needs torch, so what cannot work is refused before anything slow is
loaded."""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy

from rlhf.catalog.families import is_limited
from rlhf.catalog.stage import is_benchmark, stage_kinds
from rlhf.config.derive import (
    asked_kinds,
    divisors,
    max_sequence,
    ranks,
    samples_responses,
    share_batch,
    trained_stages,
    used_models,
)  # fmt: skip
from rlhf.config.directories import find_name_problem
from rlhf.config.errors import ConfigError, raise_problems
from rlhf.config.gpus import count_gpus
from rlhf.config.inputs import check_inputs, check_writable
from rlhf.config.keys import get_key, keys_of, set_key
from rlhf.config.rollouts import check_engine, check_sampling, check_tensor_parallel
from rlhf.config.schema import ZEROS, Config, Zero
from rlhf.config.shapes import check_models, is_whole
from rlhf.config.templates import check_template
from rlhf.config.values import check_values

# What a command does on a machine that lacks what it wants to run on.
ELSEWHERE = "here dry_run=true shows what would run"
# A model of so many weights is still trained on a processor within days.
CPU_PARAMETERS = 200_000_000

Check = Callable[[Config], Iterator[ConfigError]]


def check(config: Config) -> None:
    """Raise ConfigError with everything in `config` that cannot work."""
    shapes = SHAPE_CHECKS if all(is_whole(model) for _, model in used_models(config)) else ()
    raise_problems(find_problems(config, (*FIRST_CHECKS, check_models, check_stages, *shapes)))


def check_without_shapes(config: Config) -> None:
    """Raise ConfigError with everything in `config` that cannot work whatever the shapes of its models are."""
    raise_problems(find_problems(config, FIRST_CHECKS))


def check_keys(config: Config) -> None:
    """Raise ConfigError with every value that its key may not hold, whatever the others are."""
    raise_problems(find_problems(config, ()))


def find_problems(config: Config, checks: tuple[Check, ...]) -> list[ConfigError]:
    """Find what single keys may not hold, and what keys may not hold together.

    A key that is refused by itself counts as the nearest value that it may hold, and nothing more is said of it; of any
    other key the first problem is.
    """
    keys = keys_of(type(config))
    values = {key: get_key(config, key) for key in keys}
    found = list(check_values(values, keys))
    problems = [problem for problem, _ in found]
    refused = {problem.key for problem in problems}
    if found:
        config = deepcopy(config)
        for problem, repaired in found:
            set_key(config, problem.key, repaired)
    for check_together in checks:
        for problem in all_of(check_together, config):
            if problem.key not in refused and not any(is_named(key, str(problem)) for key in refused):
                problems.append(problem)
    first: dict[str, ConfigError] = {}
    for problem in problems[len(found) :]:
        first.setdefault(problem.key, problem)
    return [*problems[: len(found)], *first.values()]


def all_of(check_together: Check, config: Config) -> Iterator[ConfigError]:
    """Yield the problems that a check yields or raises."""
    try:
        yield from check_together(config)
    except ConfigError as error:
        yield from error.problems


def is_named(key: str, text: str) -> bool:
    """Whether a text names a key."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", text) is not None


def check_names(config: Config) -> Iterator[ConfigError]:
    """Stages, models and formats that are named can be used together."""
    if wrong := find_name_problem(config.name):
        yield wrong
    stages = config.stages
    if not stages:
        yield ConfigError("stages", stages, "there is nothing to run", f"choose stage=all, {join_or(list(stage_kinds()))}")
    if len(set(stages)) < len(stages):
        fix = f"name each once: stages=[{','.join(dict.fromkeys(stages))}]"
        yield ConfigError("stages", stages, "a stage is named twice", fix)
    alone = next((stage for stage in stages if is_benchmark(stage)), None)
    if alone is not None and len(set(stages)) > 1:
        problem = "a benchmark has random weights and runs alone"
        yield ConfigError("stages", stages, problem, f"measure with stage={alone}, train without")
    if config.bench.engines and config.bench.what != "rollout":
        problem = f"bench.what={config.bench.what} measures the configuration's own engine"
        yield ConfigError("bench.engines", config.bench.engines, problem, "set bench.what=rollout, or choose with rollout=")
    if config.ppo.kl_controller == "adaptive" and config.ppo.kl_coef == 0:
        problem = "the adaptive controller multiplies the coefficient, and 0 stays 0"
        yield ConfigError("ppo.kl_coef", config.ppo.kl_coef, problem, "start above 0, or set ppo.kl_controller=fixed")
    yield from check_template(config)


def check_stages(config: Config) -> Iterator[ConfigError]:
    """Keys go together as each stage that is asked for needs them to."""
    for kind in asked_kinds(config):
        yield from kind.problems(config)


def join_or(words: list[str]) -> str:
    """Join words as a sentence lists choices."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


def check_hardware(config: Config) -> Iterator[ConfigError]:
    """Devices, number format and ZeRO fit together, and the devices are here."""
    hardware = config.hardware
    if getattr(hardware.peak_tflops, config.precision.dtype) is None:
        yield ConfigError(
            "precision.dtype",
            config.precision.dtype,
            f"{hardware.gpu} has no such format",
            f"try precision={hardware.dtype}",
        )
    for key in ZEROS:
        yield from check_zero(key, getattr(config, key), config)
    partitions = {getattr(config, key).zero_hpz_partition_size for key in ZEROS} - {None}
    if len(partitions) > 1:
        problem = "DeepSpeed has one size of secondary partitions for all models"
        yield ConfigError("zero.zero_hpz_partition_size", config.zero.zero_hpz_partition_size, problem, "give all the same")
    if config.ppo.dropout > 0 and config.ppo.ratio_tolerance is None and samples_responses(config):
        problem = "with dropout the first mini-batch cannot reproduce the rollout's log-probabilities"
        yield ConfigError("ppo.dropout", config.ppo.dropout, problem, "set ppo.ratio_tolerance too, as 1.0")
    if samples_responses(config):
        yield from check_phases(config)
    if config.launcher.kind == "inline" and ranks(config) > 1:
        yield ConfigError(
            "launcher.kind", "inline", f"one process cannot drive {ranks(config)} devices", "try launcher=local"
        )


def check_phases(config: Config) -> Iterator[ConfigError]:
    """Check ppo.offload_idle."""
    ppo = config.ppo
    if ppo.offload_idle and config.hardware.device == "cpu":
        problem = "models are in host memory anyway"
        yield ConfigError("ppo.offload_idle", True, problem, "set it false, or choose hardware with a GPU")
    for key in ("critic_zero", "reference_zero", "reward_zero"):
        zero = getattr(config, key)
        if ppo.offload_idle and (zero.offload_param or zero.zero_hpz_partition_size is not None):
            kept = "offload_param" if zero.offload_param else "zero_hpz_partition_size"
            problem = f"{key}.{kept} already says where that model's weights are"
            yield ConfigError("ppo.offload_idle", True, problem, "choose one of the two")


def check_zero(key: str, zero: Zero, config: Config) -> Iterator[ConfigError]:
    """Check that a role's ZeRO settings fit together and the hardware; `key` names them."""
    option = "zero" if key == "zero" else f"zero@{key}"
    if zero.offload_optimizer and zero.stage == 0:
        yield ConfigError(
            f"{key}.offload_optimizer", True, "ZeRO stage 0 keeps everything on the device", f"try {option}=2-offload"
        )
    if zero.offload_param and zero.stage != 3:
        yield ConfigError(
            f"{key}.offload_param", True, f"ZeRO stage {zero.stage} does not shard weights", f"try {option}=3-offload"
        )
    saves = zero.zero_quantized_weights or zero.zero_quantized_gradients or zero.zero_hpz_partition_size is not None
    if saves and zero.stage != 3:
        problem = f"ZeRO++ is a form of stage 3, not of stage {zero.stage}"
        yield ConfigError(f"{key}.stage", zero.stage, problem, f"try {option}=plusplus")
    if (zero.zero_quantized_weights or zero.zero_quantized_gradients) and config.hardware.device == "cpu":
        name = "zero_quantized_weights" if zero.zero_quantized_weights else "zero_quantized_gradients"
        yield ConfigError(f"{key}.{name}", True, "DeepSpeed quantises on GPUs only", f"set {key}.{name}=false")
    partition, world = zero.zero_hpz_partition_size, ranks(config)
    if partition is not None and (partition < 1 or world % partition):
        problem = f"it does not divide the {world} ranks"
        yield ConfigError(f"{key}.zero_hpz_partition_size", partition, problem, "try hardware.gpus_per_node's")
    if partition == 1:
        problem = "a second copy of the weights that one rank keeps for itself saves no communication"
        fix = f"set it null, as {option}=3 does" if world == 1 else f"give a divisor of the {world} ranks above 1"
        yield ConfigError(f"{key}.zero_hpz_partition_size", partition, problem, fix)


def check_devices(config: Config) -> None:
    """Check that the devices asked for are on this machine (asked only when something is to run here), or SLURM is."""
    hardware, parallel = config.hardware, config.launcher.parallel
    if config.launcher.kind == "slurm":
        if shutil.which("sbatch") is None:
            problem = "there is no SLURM on this machine (no sbatch on PATH)"
            raise ConfigError("launcher", "slurm", problem, f"type this on a node of the cluster; {ELSEWHERE}")
        return
    if hardware.nodes > 1:
        fix = f"submit it with launcher=slurm; {ELSEWHERE}"
        raise ConfigError("hardware.nodes", hardware.nodes, "stages run on this machine only", fix)
    if hardware.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = count_gpus() if visible is None else len([d for d in visible.split(",") if d and d != "-1"])
        if hardware.gpus_per_node <= there < parallel * hardware.gpus_per_node:
            problem = f"{parallel} stages of {hardware.gpus_per_node} GPUs at once need more than the {there} GPUs here"
            raise ConfigError("launcher.parallel", parallel, problem, f"try {there // hardware.gpus_per_node}")
        if there < hardware.gpus_per_node:
            fix = f"set hardware.gpus_per_node={there}" if there else "try hardware=cpu"
            if not there and config.model.num_parameters > CPU_PARAMETERS:
                fix = f"type it where they are, or submit it with launcher=slurm; {ELSEWHERE}"
            raise ConfigError("hardware.gpus_per_node", hardware.gpus_per_node, f"this machine shows {there} GPUs", fix)


def check_lengths(config: Config) -> Iterator[ConfigError]:
    """Responses can end, and sequences fit the models' positions."""
    rollout = config.rollout
    if (rollout.fixed_length or rollout.min_new_tokens == rollout.max_new_tokens) and config.ppo.eos_penalty is not None:
        yield ConfigError(
            "ppo.eos_penalty",
            config.ppo.eos_penalty,
            "with responses of fixed length none can end, so all would get it",
            "set ppo.eos_penalty=null",
        )
    for key, model in used_models(config):
        made_to_measure = any(map(is_benchmark, config.stages))
        unlimited = not is_limited(model.family) or made_to_measure
        if max_sequence(config) > model.max_position_embeddings and not unlimited:
            yield ConfigError(
                f"{key}.max_position_embeddings", model.max_position_embeddings,
                f"prompt and response together reach {max_sequence(config)} tokens",
                f"lower data.max_prompt_tokens={config.data.max_prompt_tokens} or the response lengths",
            )  # fmt: skip
        if model.path is None and config.data.tokenizer_vocab_size > model.vocab_size:
            yield ConfigError(
                "data.tokenizer_vocab_size",
                config.data.tokenizer_vocab_size,
                f"{key} has {model.vocab_size} rows",
                f"try {model.vocab_size}",
            )


def check_batches(config: Config) -> Iterator[ConfigError]:
    """Every global batch of the stages that run can be shared by the ranks."""
    for stage in trained_stages(config):
        try:
            share_batch(config, stage)
        except ConfigError as error:
            yield error
    ppo, world, uses_ppo = config.ppo, ranks(config), samples_responses(config)
    if uses_ppo and ppo.rollout_batch_size % ppo.batch_size:
        near = max(1, round(ppo.rollout_batch_size / ppo.batch_size)) * ppo.batch_size
        yield ConfigError(
            "ppo.rollout_batch_size",
            ppo.rollout_batch_size,
            f"it is not a multiple of ppo.batch_size={ppo.batch_size}",
            f"try {near}",
        )
    micro, copies, own = config.rollout.micro_batch_size, config.rollout.samples_per_prompt, ppo.rollout_batch_size // world
    if uses_ppo and micro is not None and (micro < 1 or own % micro):
        problem = f"it does not divide the {own} responses of a rank"
        yield ConfigError("rollout.micro_batch_size", micro, problem, "try null")
    if uses_ppo and own % copies:
        problem = f"it does not divide the {own} responses of a rank"
        unit = math.lcm(world * copies, ppo.batch_size)
        fix = f"try one of {divisors(own)}, or ppo.rollout_batch_size={unit * -(-ppo.rollout_batch_size // unit)}"
        yield ConfigError("rollout.samples_per_prompt", copies, problem, fix)


# What needs no shape of a model, and what does.
FIRST_CHECKS: tuple[Check, ...] = (check_names, check_inputs, check_hardware, check_sampling, check_writable)
SHAPE_CHECKS: tuple[Check, ...] = (
    check_engine, check_tensor_parallel, check_lengths, check_batches,
)  # fmt: skip
