"""The values that each key may hold, as tables: ranges of numbers, choices among words, and what text may be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from rlhf.catalog.stage import is_stage, stage_kinds
from rlhf.config.errors import ConfigError
from rlhf.config.keys import LEAF_TYPES, types_of, without_none
from rlhf.config.schema import LORAS, ZEROS, Config, Training

# The groups of training keys.
TRAINED = tuple(name for name, kind in types_of(Config).items() if isinstance(kind, type) and issubclass(kind, Training))
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; an end that is open does not belong to them."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether the number lies inside; NaN lies in no range."""
        above = self.low < value if self.open_low else self.low <= value
        return bool(above and (value < self.high if self.open_high else value <= self.high))

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return low if self.high >= LARGEST else f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"

    def nearest(self, value: float) -> float:
        """A number inside the range that is near to the value."""
        if value in self:
            return value
        low = self.low + (min(1.0, (self.high - self.low) / 2) if self.open_low else 0)
        high = low if self.open_high else self.high
        return high if value > self.high else low


# The largest whole number that torch, JSON readers and SLURM take alike.
LARGEST = 2**63 - 1
COUNT, FROM_ZERO, FINITE = Range(1, 1e9), Range(0, 1e9), Range(-1e9, 1e9)
BATCH = Range(1, 1e7)
SHARE = Range(0, 1, open_high=True)
# AdamW moves a weight by about the learning rate in a step.
RATE = Range(0, 1)


def positive_float(high: float) -> Range:
    """Numbers above 0, up to `high`."""
    return Range(0, high, open_low=True)


# What a whole number and a number may be where RANGES does not say more. `null` passes where the schema allows it.
DEFAULTS = {int: Range(0, LARGEST), float: Range(-1e30, 1e30)}
RANGES: dict[str, Range] = {
    "hardware.gpus_per_node": Range(1, 1024),
    "hardware.nodes": Range(1, 65536),
    **{
        f"hardware.{key}": positive_float(1e9)
        for key in ("memory_gib", "memory_bandwidth_gb_s", "link_gb_s", *(f"peak_tflops.{dtype}" for dtype in DTYPES))
    },
    "hardware.price_per_gpu_hour": Range(0, 1e6),
    **{f"{lora}.alpha": Range(0, 1e6) for lora in LORAS},
    **{f"{lora}.dropout": SHARE for lora in LORAS},
    **{f"{lora}.learning_rate": RATE for lora in LORAS},
    **{f"{zero}.reduce_bucket_size": Range(1, 1e12) for zero in ZEROS},
    **{f"{zero}.stage3_max_live_parameters": Range(1, 1e12) for zero in ZEROS},
    **{f"{zero}.stage3_param_persistence_threshold": Range(0, 1e12) for zero in ZEROS},
    "data.max_prompt_tokens": COUNT,
    "data.max_response_tokens": COUNT,
    "data.tokenizer_vocab_size": Range(300, 1e7),
    "data.demo.heldout_prompts": Range(1, 359),
    "data.demo.demonstrations": Range(1, 1e6),
    "data.demo.rounds": Range(1, 1000),
    "data.demo.answers_per_prompt": Range(2, 32),
    "data.demo.label_noise": Range(0, 1e3),
    **{
        f"{stage}.{key}": bounds
        for stage in TRAINED
        for key, bounds in {
            "epochs": Range(1, 1e6),
            "max_steps": COUNT,
            "batch_size": BATCH,
            "micro_batch_size": BATCH,
            "max_nonfinite": COUNT,
            "eval_every": COUNT,
            "warmup_steps": FROM_ZERO,
            "learning_rate": RATE,
            "weight_decay": Range(0, 1e3),
            "eps": Range(0, 1),
            "dropout": SHARE,
            "max_grad_norm": positive_float(1e12),
        }.items()
    },
    "ppo.critic_learning_rate": RATE,
    "ppo.critic_weight_decay": Range(0, 1e3),
    "ppo.critic_dropout": SHARE,
    "ppo.eos_penalty": FINITE,
    "ppo.length_penalty": FINITE,
    "ppo.ptx_coef": Range(0, 1e6),
    "ppo.ema_decay": SHARE,
    "ppo.ema_start": FROM_ZERO,
    "ppo.ema_interval": COUNT,
    "ppo.rollout_batch_size": BATCH,
    "ppo.update_epochs": Range(1, 1e6),
    "ppo.gamma": Range(0, 1),
    "ppo.gae_lambda": Range(0, 1),
    "ppo.kl_coef": Range(0, 1e6),
    "ppo.kl_target": positive_float(1e6),
    "ppo.kl_horizon": positive_float(1e12),
    "ppo.value_coef": Range(0, 1e6),
    "ppo.clip_range": positive_float(1e3),
    "ppo.value_clip_range": positive_float(1e9),
    "ppo.log_ratio_clip": positive_float(80),  # float32 holds exp(88)
    "ppo.reward_clip": positive_float(1e9),
    "ppo.ratio_tolerance": positive_float(1e3),
    "ppo.sampler_tolerance": positive_float(1e3),
    "rollout.tensor_parallel": Range(1, 1024),
    "rollout.samples_per_prompt": BATCH,
    "rollout.temperature": Range(0.01, 100),
    "rollout.top_k": FROM_ZERO,
    "rollout.top_p": positive_float(1),
    "rollout.repetition_penalty": positive_float(100),
    "rollout.max_new_tokens": COUNT,
    "rollout.min_new_tokens": FROM_ZERO,
    "rollout.micro_batch_size": BATCH,
    "checkpoint.every_steps": COUNT,
    "checkpoint.every_minutes": positive_float(1e6),
    "checkpoint.keep": COUNT,
    "sweep.trials": COUNT,
    "bench.repeats": COUNT,
    **{
        f"launcher.{key}": Range(1, 1e6)
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
    "launcher.grace_s": Range(0, 1e6),
    "launcher.lock_timeout_s": positive_float(1e6),
    "launcher.max_requeues": Range(0, 1e6),
}

CHOICES: dict[str, tuple[Any, ...]] = {
    "precision.dtype": DTYPES,
    "hardware.dtype": DTYPES,
    "hardware.device": ("cpu", "cuda"),
    "data.source": ("demo", "files", "hub"),
    "data.truncation": ("paragraphs", "left", "drop"),
    **{f"{stage}.schedule": ("linear", "cosine", "constant") for stage in TRAINED},
    **{f"{zero}.stage": (0, 1, 2, 3) for zero in ZEROS},
    "sft.loss_on": ("completion", "full"),
    "reward.normalize": ("bias", "standard", "none"),
    "ppo.kl_controller": ("fixed", "adaptive"),
    "ppo.eos_penalty_mode": ("replace", "subtract"),
    "ppo.ptx.source": ("demonstrations", "file", "hub"),
    "ppo.packing": ("packed", "length", "none"),
    "rollout.engine": ("hf", "hybrid", "paged", "deepspeed"),
    "rollout.gather": ("auto", "all", "layers"),
    "bench.what": ("step3", "rollout", "score", "train", "stages"),
    "bench.lengths": ("fixed", "real"),
    "bench.engines": ("hybrid", "paged", "deepspeed"),
    "launcher.kind": ("auto", "inline", "local", "slurm"),
    "checkpoint.on_error": ("go_on", "stop"),
    "sweep.direction": ("maximize", "minimize"),
    "sweep.sampler": ("tpe", "random"),
    "tracking.wandb.mode": ("online", "offline", "disabled"),
}


def check_values(values: Mapping[str, Any]) -> Iterator[tuple[ConfigError, Any]]:
    """Find the values, by dotted key, that their key may not hold whatever the others are; each with a value that it may
    hold instead."""
    for key, value in values.items():
        kind = without_none(LEAF_TYPES[key])
        if key == "stages":
            outside = [name for name in value or () if "." in name and is_stage(name)]
            yield from check_choice(key, value, (*stage_kinds(), *outside))
        elif key in CHOICES:
            yield from check_choice(key, value, CHOICES[key])
        elif key.endswith(".betas"):
            yield from check_betas(key, value)
        elif value is not None and kind in DEFAULTS:
            yield from check_number(key, value, RANGES.get(key, DEFAULTS[kind]))
        elif value is not None and kind is str:
            yield from check_text(key, value)


def check_choice(key: str, value: Any, options: tuple[Any, ...]) -> Iterator[tuple[ConfigError, Any]]:
    """Find words that are no choice of their key, which may hold one, or a list of them."""
    chosen = value if isinstance(value, list) else [] if value is None else [value]
    known = [word for word in chosen if word in options] or list(options[:1])
    for word in chosen:
        if word not in options:
            fix = f"choose one of {', '.join(map(str, options))}"
            yield ConfigError(key, word, "there is no such choice", fix), known if value is chosen else known[0]


def check_number(key: str, value: float, numbers: Range) -> Iterator[tuple[ConfigError, Any]]:
    """Find a number that is out of its range, as infinity and NaN are of every one."""
    if value not in numbers:
        nearest = numbers.nearest(value)
        repaired = int(nearest) if isinstance(value, int) else float(nearest)
        yield ConfigError(key, value, "out of range", f"give a number {numbers}"), repaired


def check_text(key: str, text: str) -> Iterator[tuple[ConfigError, Any]]:
    """Find text that is empty or cannot be written as UTF-8."""
    repaired = "{prompt}" if without_none(LEAF_TYPES[key]) is LEAF_TYPES[key] else None
    if not text.strip():
        yield ConfigError(key, repr(text), "it is empty", "give some text, or leave the key out"), repaired
    elif "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        yield ConfigError(key, text, "it holds a NUL, or bytes that are not UTF-8", "leave them out"), repaired


def check_betas(key: str, betas: list[float]) -> Iterator[tuple[ConfigError, Any]]:
    """Find moments of AdamW that are not two numbers in [0, 1)."""
    if len(betas) != 2 or not all(beta in SHARE for beta in betas):
        yield ConfigError(key, betas, "AdamW takes two numbers in [0, 1)", "try [0.9,0.95]"), [0.9, 0.95]


def get_key(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    return reduce(getattr, key.split("."), config)


def set_key(config: Config, key: str, value: Any) -> None:
    """Set the value at a dotted key."""
    group, _, name = key.rpartition(".")
    setattr(get_key(config, group) if group else config, name, value)
