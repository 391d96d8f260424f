"""What follows from the configuration: ranks, micro-batches, accumulation. Every cross-check stands here.

Nothing here needs torch, so a configuration that cannot work is refused before anything slow is loaded.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.memory import largest_micro_batch, training_state_gib
from rlhf.config.ranges import STAGES, check_ranges
from rlhf.config.schema import Config, Training

FAMILIES = ("opt",)


@dataclass(frozen=True)
class Batches:
    """How a global batch of sequences is shared: `per_rank` = micro * accumulation, over `ranks` ranks."""

    ranks: int
    per_rank: int
    micro: int
    accumulation: int


def ranks(config: Config) -> int:
    """Processes of a stage, one per device."""
    return config.hardware.nodes * config.hardware.gpus_per_node


def max_sequence(config: Config) -> int:
    """Longest sequence that training meets, in tokens."""
    return config.data.max_prompt_tokens + max(config.data.max_response_tokens, config.rollout.max_new_tokens)


def batches(config: Config, stage: str) -> Batches:
    """The shares of `<stage>.batch_size`; raises ConfigError where they do not come out even."""
    training: Training = getattr(config, stage)
    world = ranks(config)
    even = f"{stage}.batch_size"
    if training.batch_size < world or training.batch_size % world:
        near = max(1, round(training.batch_size / world)) * world
        raise ConfigError(even, training.batch_size, f"{world} ranks cannot share it evenly", f"try {near}")
    per_rank = training.batch_size // world
    micro = training.micro_batch_size
    if micro is None:
        micro = derived_micro_batch(config, stage, per_rank)
    if micro < 1 or per_rank % micro:
        fits = [d for d in range(1, per_rank + 1) if per_rank % d == 0]
        raise ConfigError(
            f"{stage}.micro_batch_size",
            micro,
            f"it does not divide the {per_rank} sequences of a rank",
            f"try one of {fits}",
        )
    return Batches(world, per_rank, micro, per_rank // micro)


def derived_micro_batch(config: Config, stage: str, per_rank: int) -> int:
    """The largest micro-batch that surely fits beside the stage's weights and optimiser state."""
    trained = {"sft": [config.model], "reward": [config.reward_model], "ppo": [config.model, config.reward_model]}[stage]
    frozen = trained if stage == "ppo" else []
    state = training_state_gib(config, trained, frozen)
    tokens = max_sequence(config) * (answers_per_element(config) if stage == "reward" else 1)
    checkpointing = getattr(config, stage).gradient_checkpointing
    return min(largest_micro_batch(m, config, per_rank, tokens, state, checkpointing) for m in trained)


def answers_per_element(config: Config) -> int:
    """Rows of one comparison element."""
    if config.reward.grouped and config.data.source == "demo":
        return config.data.demo.answers_per_prompt * config.data.demo.rounds
    return 2


def check(config: Config) -> None:
    """Raise ConfigError for the first thing in `config` that cannot work."""
    check_ranges(config)
    check_names(config)
    check_inputs(config)
    check_hardware(config)
    check_models(config)
    check_lengths(config)
    check_batches(config)
    check_writable(config)


def one_of(key: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse a value outside a short list."""
    if value not in options:
        raise ConfigError(key, value, "there is no such choice", f"choose one of {', '.join(map(str, options))}")


def check_names(config: Config) -> None:
    """Choices that are names."""
    if not config.stages:
        raise ConfigError("stages", config.stages, "there is nothing to run", "choose stage=all, sft, reward or ppo")
    for stage in config.stages:
        one_of("stages", stage, STAGES)
    for key, model in (("model", config.model), ("reward_model", config.reward_model)):
        one_of(f"{key}.family", model.family, FAMILIES)
    one_of("precision.dtype", config.precision.dtype, ("fp32", "bf16", "fp16"))
    one_of("data.source", config.data.source, ("demo", "files", "hub"))
    one_of("data.truncation", config.data.truncation, ("paragraphs", "left", "drop"))
    for stage in STAGES:
        one_of(f"{stage}.schedule", getattr(config, stage).schedule, ("linear", "cosine", "constant"))
    one_of("sft.loss_on", config.sft.loss_on, ("completion", "full"))
    one_of("reward.normalize", config.reward.normalize, ("bias", "none"))
    one_of("ppo.kl_controller", config.ppo.kl_controller, ("fixed", "adaptive"))
    one_of("ppo.eos_penalty_mode", config.ppo.eos_penalty_mode, ("replace", "subtract"))
    one_of("rollout.engine", config.rollout.engine, ("hf",))
    one_of("launcher.kind", config.launcher.kind, ("auto", "inline", "local"))
    one_of("tracking.wandb.mode", config.tracking.wandb.mode, (None, "online", "offline", "disabled"))
    try:
        shown = config.data.prompt_format.format(prompt="?!?")
    except (KeyError, ValueError, IndexError):
        shown = ""
    if "?!?" not in shown:
        raise ConfigError(
            "data.prompt_format", repr(config.data.prompt_format), "it has no place for the prompt", "add {prompt}"
        )


def check_hardware(config: Config) -> None:
    """Devices, number format and ZeRO fit together, and the devices are here."""
    hardware, zero = config.hardware, config.zero
    one_of("hardware.device", hardware.device, ("cpu", "cuda"))
    if hardware.device == "cpu" and config.precision.dtype == "fp16":
        raise ConfigError(
            "precision.dtype", "fp16", "the CPU does not train in fp16", "try precision=bf16 or precision=fp32"
        )
    if getattr(hardware.peak_tflops, config.precision.dtype) is None:
        raise ConfigError(
            "precision.dtype",
            config.precision.dtype,
            f"{hardware.gpu} has no such format",
            f"try precision={hardware.dtype}",
        )
    one_of("zero.stage", zero.stage, (0, 1, 2, 3))
    if zero.offload_optimizer and zero.stage == 0:
        raise ConfigError(
            "zero.offload_optimizer", True, "ZeRO stage 0 keeps everything on the device", "try zero=2-offload"
        )
    if zero.offload_parameters and zero.stage != 3:
        raise ConfigError(
            "zero.offload_parameters", True, f"ZeRO stage {zero.stage} does not shard weights", "try zero=3-offload"
        )
    if config.launcher.kind == "inline" and ranks(config) > 1:
        raise ConfigError(
            "launcher.kind", "inline", f"one process cannot drive {ranks(config)} devices", "try launcher=local"
        )


def check_devices(config: Config) -> None:
    """The devices asked for are on this machine (asked only when something is to run here)."""
    hardware = config.hardware
    if hardware.nodes > 1:
        raise ConfigError("hardware.nodes", hardware.nodes, "stages run on this machine only", "set hardware.nodes=1")
    if hardware.device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        there = (
            len(list(Path("/dev").glob("nvidia[0-9]*")))
            if visible is None
            else len([d for d in visible.split(",") if d and d != "-1"])
        )
        if there < hardware.gpus_per_node:
            fix = f"set hardware.gpus_per_node={there}" if there else "try hardware=cpu"
            raise ConfigError("hardware.gpus_per_node", hardware.gpus_per_node, f"this machine shows {there} GPUs", fix)


def check_models(config: Config) -> None:
    """Shapes that can be built, and an actor and a critic that can share a tokenizer."""
    for key, model in (("model", config.model), ("reward_model", config.reward_model)):
        if model.heads < 1 or model.width % model.heads:
            raise ConfigError(f"{key}.heads", model.heads, f"it does not divide the width {model.width}", "change one")
    given = config.ppo.actor is not None or config.ppo.reward is not None
    if "ppo" in config.stages and not given and (config.model.path is None) != (config.reward_model.path is None):
        raise ConfigError(
            "reward_model",
            config.reward_model.name,
            f"its tokenizer is not that of model={config.model.name}, so no critic can start from it",
            f"try reward_model={config.model.name}",
        )


def check_lengths(config: Config) -> None:
    """Sampling options agree, and sequences fit the models' positions."""
    rollout = config.rollout
    if rollout.min_new_tokens > rollout.max_new_tokens:
        raise ConfigError(
            "rollout.min_new_tokens",
            rollout.min_new_tokens,
            "it is more than rollout.max_new_tokens",
            f"try {rollout.max_new_tokens}",
        )
    if rollout.min_new_tokens == rollout.max_new_tokens and config.ppo.eos_penalty is not None:
        raise ConfigError(
            "ppo.eos_penalty",
            config.ppo.eos_penalty,
            "with rollout.min_new_tokens = max_new_tokens no response can end, so all would get it",
            "set ppo.eos_penalty=null",
        )
    for key, model in (("model", config.model), ("reward_model", config.reward_model)):
        if max_sequence(config) > model.positions:
            raise ConfigError(
                f"{key}.positions", model.positions, f"prompt and response together reach {max_sequence(config)} tokens",
                f"lower data.max_prompt_tokens={config.data.max_prompt_tokens} or the response lengths",
            )  # fmt: skip
        if model.path is None and config.data.tokenizer_vocabulary > model.vocabulary:
            raise ConfigError(
                "data.tokenizer_vocabulary",
                config.data.tokenizer_vocabulary,
                f"{key} has {model.vocabulary} rows",
                f"try {model.vocabulary}",
            )


def check_batches(config: Config) -> None:
    """Every global batch of the stages that run can be shared by the ranks."""
    for stage in config.stages:
        batches(config, stage)
    ppo, world = config.ppo, ranks(config)
    if "ppo" in config.stages and ppo.rollout_batch_size % ppo.batch_size:
        near = max(1, round(ppo.rollout_batch_size / ppo.batch_size)) * ppo.batch_size
        raise ConfigError(
            "ppo.rollout_batch_size",
            ppo.rollout_batch_size,
            f"it is not a multiple of ppo.batch_size={ppo.batch_size}",
            f"try {near}",
        )
    micro = config.rollout.micro_batch_size
    if "ppo" in config.stages and micro is not None and (micro < 1 or (ppo.rollout_batch_size // world) % micro):
        raise ConfigError(
            "rollout.micro_batch_size",
            micro,
            f"it does not divide the {ppo.rollout_batch_size // world} prompts of a rank",
            "try null",
        )


def check_inputs(config: Config) -> None:
    """Files and directories that the configuration names are there."""
    if config.data.source == "files":
        for key in ("train", "heldout"):
            path = getattr(config.data.files, key)
            if path is None or not Path(path).is_file():
                raise ConfigError(
                    f"data.files.{key}", path, "there is no such file", "give a .jsonl, .json, .csv or .parquet file"
                )
    if config.data.source == "hub" and config.data.hub.name is None:
        raise ConfigError(
            "data.hub.name", "null", "data=hub needs a data set", "give one, as data.hub.name=Dahoas/rm-static"
        )
    for key, path in (("model.path", config.model.path), ("reward_model.path", config.reward_model.path),
                      ("ppo.actor", config.ppo.actor), ("ppo.reward", config.ppo.reward)):  # fmt: skip
        if (
            path is not None
            and path.startswith(("/", "./", "../", "~", "outputs/"))
            and not Path(path).expanduser().is_dir()
        ):
            raise ConfigError(
                key, path, "there is no such directory", "give a directory that holds config.json, or a hub id"
            )


def check_writable(config: Config) -> None:
    """Results can be written."""
    root = Path(config.output_root)
    existing = next(p for p in (root, *root.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            "output_root",
            config.output_root,
            f"{existing} cannot be written",
            "choose another directory: output_root=...",
        )
