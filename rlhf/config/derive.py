"""What follows from the configuration: ranks, micro-batches, accumulation. Every cross-check stands here.

Nothing here needs torch, so a configuration that cannot work is refused before anything slow is loaded.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.memory import largest_micro_batch, training_state_gib
from rlhf.config.schema import Config, Training

STAGES = ("sft", "reward", "ppo")
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
    rows = 2 if stage == "reward" else 1
    checkpointing = getattr(config, stage).gradient_checkpointing
    return largest_micro_batch(trained[0], config, per_rank, rows * max_sequence(config), state, checkpointing)


def check(config: Config) -> None:
    """Raise ConfigError for the first thing in `config` that cannot work."""
    check_names(config)
    check_hardware(config)
    check_ranges(config)
    check_inputs(config)
    check_lengths(config)
    check_batches(config)
    check_writable(config)


def one_of(key: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse a value outside a short list."""
    if value not in options:
        raise ConfigError(key, value, "there is no such choice", f"choose one of {', '.join(map(str, options))}")


def between(key: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    """Refuse a number outside [low, high], or (low, high]."""
    if not (low < value if open_low else low <= value) or value > high:
        bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
            f" and at most {high:g}" if high != float("inf") else ""
        )
        raise ConfigError(key, value, "out of range", f"give a number {bounds}")


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
    if "{prompt}" not in config.data.prompt_format:
        raise ConfigError(
            "data.prompt_format", repr(config.data.prompt_format), "it has no place for the prompt", "add {prompt}"
        )


def check_hardware(config: Config) -> None:
    """Devices, number format and ZeRO fit together, and the devices are here."""
    hardware, zero = config.hardware, config.zero
    one_of("hardware.device", hardware.device, ("cpu", "cuda"))
    for key in ("gpus_per_node", "nodes"):
        between(f"hardware.{key}", getattr(hardware, key), 1, float("inf"))
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
            len(list(Path("/dev").glob("nvidia[0-9]*"))) if visible is None else len([d for d in visible.split(",") if d])
        )
        if there < hardware.gpus_per_node:
            fix = f"set hardware.gpus_per_node={there}" if there else "try hardware=cpu"
            raise ConfigError("hardware.gpus_per_node", hardware.gpus_per_node, f"this machine shows {there} GPUs", fix)


def check_ranges(config: Config) -> None:
    """Numbers within what they mean."""
    infinity = float("inf")
    between("seed", config.seed, 0, 2**63 - 1)
    between("lora.rank", config.lora.rank, 0, infinity)
    between("sft.dropout", config.sft.dropout, 0, 1)
    between("reward.dropout", config.reward.dropout, 0, 1)
    between("lora.dropout", config.lora.dropout, 0, 1)
    between("data.demo.label_noise", config.data.demo.label_noise, 0, infinity)
    between("data.demo.answers_per_prompt", config.data.demo.answers_per_prompt, 2, infinity)
    between("data.demo.heldout_prompts", config.data.demo.heldout_prompts, 1, 359)
    for key in ("demonstrations", "rounds"):
        between(f"data.demo.{key}", getattr(config.data.demo, key), 1, infinity)
    for stage in STAGES:
        training: Training = getattr(config, stage)
        between(f"{stage}.epochs", training.epochs, 1, infinity)
        between(f"{stage}.learning_rate", training.learning_rate, 0, infinity)
        between(f"{stage}.warmup_steps", training.warmup_steps, 0, infinity)
        between(f"{stage}.max_grad_norm", training.max_grad_norm, 0, infinity, open_low=True)
        for key in ("max_steps", "eval_every"):
            if getattr(training, key) is not None:
                between(f"{stage}.{key}", getattr(training, key), 1, infinity)
        if len(training.betas) != 2 or not all(0 <= beta < 1 for beta in training.betas):
            raise ConfigError(f"{stage}.betas", training.betas, "AdamW takes two numbers in [0, 1)", "try [0.9,0.95]")
    ppo = config.ppo
    for key, high in (("gamma", 1), ("gae_lambda", 1), ("kl_coef", infinity), ("value_coef", infinity)):
        between(f"ppo.{key}", getattr(ppo, key), 0, high)
    for key in ("critic_learning_rate", "update_epochs"):
        between(f"ppo.{key}", getattr(ppo, key), 0, infinity, open_low=key == "update_epochs")
    for key in ("clip_range", "value_clip_range", "log_ratio_clip", "kl_target", "kl_horizon"):
        between(f"ppo.{key}", getattr(ppo, key), 0, infinity, open_low=True)
    for key in ("reward_clip", "ratio_tolerance"):
        if getattr(ppo, key) is not None:
            between(f"ppo.{key}", getattr(ppo, key), 0, infinity, open_low=True)


def check_lengths(config: Config) -> None:
    """Sampling options agree, and sequences fit the models' positions."""
    rollout = config.rollout
    between("rollout.temperature", rollout.temperature, 0, float("inf"), open_low=True)
    between("rollout.top_p", rollout.top_p, 0, 1, open_low=True)
    between("rollout.top_k", rollout.top_k, 0, float("inf"))
    between("rollout.max_new_tokens", rollout.max_new_tokens, 1, float("inf"))
    between("rollout.min_new_tokens", rollout.min_new_tokens, 0, rollout.max_new_tokens)
    between("data.max_prompt_tokens", config.data.max_prompt_tokens, 1, float("inf"))
    between("data.max_response_tokens", config.data.max_response_tokens, 1, float("inf"))
    between("data.tokenizer_vocabulary", config.data.tokenizer_vocabulary, 300, float("inf"))
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
