"""The numbers that each key may hold, as a table."""

from functools import reduce
from typing import Any

from rlhf.config.errors import ConfigError
from rlhf.config.schema import LORAS, ZEROS, Config

INFINITY = float("inf")
# The stages that train, in the order they run, and the one that measures them.
TRAINED = ("sft", "reward", "ppo")
STAGES = (*TRAINED, "bench")

# Key: (least, most). `null` passes where the schema allows it.
CLOSED: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "hardware.gpus_per_node": (1, INFINITY),
    "hardware.nodes": (1, INFINITY),
    **{f"{lora}.rank": (0, INFINITY) for lora in LORAS},
    **{f"{lora}.dropout": (0, 1) for lora in LORAS},
    **{f"{lora}.learning_rate": (0, 1e9) for lora in LORAS},
    **{f"{zero}.bucket_elements": (1, INFINITY) for zero in ZEROS},
    **{f"{zero}.live_elements": (1, INFINITY) for zero in ZEROS},
    **{f"{zero}.persistence_elements": (0, INFINITY) for zero in ZEROS},
    "data.max_prompt_tokens": (1, INFINITY),
    "data.max_response_tokens": (1, INFINITY),
    "data.tokenizer_vocabulary": (300, INFINITY),
    "data.demo.heldout_prompts": (1, 359),
    "data.demo.demonstrations": (1, INFINITY),
    "data.demo.rounds": (1, INFINITY),
    "data.demo.answers_per_prompt": (2, 32),
    "data.demo.label_noise": (0, INFINITY),
    "sft.dropout": (0, 1),
    "reward.dropout": (0, 1),
    **{
        f"{stage}.{key}": bounds
        for stage in TRAINED
        for key, bounds in {
            "epochs": (1, INFINITY),
            "max_steps": (1, INFINITY),
            "max_nonfinite": (1, INFINITY),
            "eval_every": (1, INFINITY),
            "warmup_steps": (0, INFINITY),
            "learning_rate": (0, 1e9),
            "weight_decay": (0, 1e9),
            "eps": (0, 1e9),
        }.items()
    },
    "ppo.critic_learning_rate": (0, 1e9),
    "ppo.critic_weight_decay": (0, 1e9),
    "ppo.dropout": (0, 1),
    "ppo.critic_dropout": (0, 1),
    "ppo.length_penalty": (-INFINITY, INFINITY),
    "ppo.ptx_coef": (0, INFINITY),
    "ppo.ema_decay": (0, 1),
    "ppo.ema_start": (0, INFINITY),
    "ppo.ema_interval": (1, INFINITY),
    "ppo.rollout_batch_size": (1, INFINITY),
    "ppo.update_epochs": (1, INFINITY),
    "ppo.gamma": (0, 1),
    "ppo.gae_lambda": (0, 1),
    "ppo.kl_coef": (0, INFINITY),
    "ppo.value_coef": (0, INFINITY),
    "rollout.tensor_parallel": (1, INFINITY),
    "rollout.samples_per_prompt": (1, INFINITY),
    "rollout.top_k": (0, INFINITY),
    "rollout.max_new_tokens": (1, INFINITY),
    "rollout.min_new_tokens": (0, INFINITY),
    "checkpoint.every_steps": (1, INFINITY),
    "checkpoint.keep": (1, INFINITY),
    "sweep.trials": (1, INFINITY),
    "bench.repeats": (1, INFINITY),
    **{
        f"launcher.{key}": (1, INFINITY)
        for key in (
            "threads",
            "parallel",
            "time_minutes",
            "memory_gib",
            "cpus_per_gpu",
            "array_parallelism",
            "signal_delay_s",
        )
    },
    "launcher.grace_s": (0, INFINITY),
    "launcher.max_requeues": (0, INFINITY),
}

# Key: most; the number must be above 0.
POSITIVE: dict[str, float] = {
    **{f"{stage}.max_grad_norm": INFINITY for stage in TRAINED},
    **{f"ppo.{key}": INFINITY for key in ("clip_range", "value_clip_range", "log_ratio_clip", "kl_target", "kl_horizon")},
    "ppo.reward_clip": INFINITY,
    "ppo.ratio_tolerance": INFINITY,
    "ppo.sampler_tolerance": INFINITY,
    "rollout.temperature": INFINITY,
    "rollout.top_p": 1,
    "rollout.repetition_penalty": INFINITY,
    "hardware.peak_tflops.fp32": INFINITY,
    "hardware.peak_tflops.fp16": INFINITY,
    "hardware.peak_tflops.bf16": INFINITY,
    "launcher.lock_timeout_s": INFINITY,
    "checkpoint.every_minutes": INFINITY,
}


def check_ranges(config: Config) -> None:
    """Raise ConfigError for the first number that is out of its range (NaN is out of every range)."""
    for key, (low, high) in CLOSED.items():
        value = at(config, key)
        if value is not None and not low <= value <= high:
            raise ConfigError(key, value, "out of range", f"give a number {bounds('at least', low, high)}")
    for key, high in POSITIVE.items():
        value = at(config, key)
        if value is not None and not 0 < value <= high:
            raise ConfigError(key, value, "out of range", f"give a number {bounds('above', 0, high)}")
    for stage in TRAINED:
        betas = at(config, f"{stage}.betas")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"{stage}.betas", betas, "AdamW takes two numbers in [0, 1)", "try [0.9,0.95]")


def at(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    return reduce(getattr, key.split("."), config)


def bounds(relation: str, low: float, high: float) -> str:
    """A range in words."""
    return f"{relation} {low:g}" + (f" and at most {high:g}" if high != INFINITY else "")
