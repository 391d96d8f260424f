"""Every configuration key, once: its name and its type. Values and their meaning stand in conf/, one file per option.

Sequences are counted over all ranks unless a name says otherwise; lengths are in tokens, times in seconds, KL in nats.
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING


@dataclass
class Model:
    """A model's origin and shape. Widths are in elements; `parameters` counts the language model, a tied head once."""

    name: str = MISSING
    family: str = MISSING
    path: str | None = MISSING
    revision: str | None = MISSING
    gguf_file: str | None = MISSING
    layers: int = MISSING
    width: int = MISSING
    heads: int = MISSING
    kv_heads: int = MISSING
    head_width: int = MISSING
    ffn: int = MISSING
    gated: bool = MISSING
    embedding: int = MISSING
    norm_first: bool = MISSING
    vocabulary: int = MISSING
    positions: int = MISSING
    tied: bool = MISSING
    parameters: int = MISSING
    trust_remote_code: bool = MISSING


@dataclass
class PeakTflops:
    """Dense peak per GPU, in TFLOP/s; None where the hardware lacks the format."""

    fp32: float = MISSING
    fp16: float | None = MISSING
    bf16: float | None = MISSING


@dataclass
class Hardware:
    """A GPU type and how many of it: GiB, TFLOP/s, GB/s and US dollars per GPU-hour."""

    device: str = MISSING
    gpu: str = MISSING
    memory_gib: float = MISSING
    peak_tflops: PeakTflops = MISSING
    memory_bandwidth_gb_s: float = MISSING
    link: str = MISSING
    link_gb_s: float = MISSING
    gpus_per_node: int = MISSING
    nodes: int = MISSING
    price_per_gpu_hour: float = MISSING
    dtype: str = MISSING


@dataclass
class Zero:
    """DeepSpeed ZeRO: stage 0 to 3, what is kept in host memory, and ZeRO++'s savings of communication."""

    stage: int = MISSING
    offload_optimizer: bool = MISSING
    offload_parameters: bool = MISSING
    bucket_elements: int = MISSING
    persistence_elements: int = MISSING
    live_elements: int = MISSING
    quantized_weights: bool = MISSING
    quantized_gradients: bool = MISSING
    secondary_partition: int = MISSING


@dataclass
class Precision:
    """Format of weights and activations: fp32, bf16 or fp16. Losses and log-probabilities are always fp32."""

    dtype: str = MISSING


@dataclass
class Lora:
    """Low-rank adapters; rank 0 means none. `target_modules` is `auto` or a list of names."""

    rank: int = MISSING
    alpha: int = MISSING
    dropout: float = MISSING
    target_modules: Any = MISSING
    learning_rate: float | None = MISSING
    only: bool = MISSING
    save_merged: bool = MISSING


@dataclass
class DemoData:
    """The generated data set."""

    heldout_prompts: int = MISSING
    demonstrations: int = MISSING
    answers_per_prompt: int = MISSING
    rounds: int = MISSING
    label_noise: float = MISSING


@dataclass
class Files:
    """Paths of your own records."""

    train: str | None = MISSING
    heldout: str | None = MISSING


@dataclass
class Hub:
    """A data set of the Hugging Face hub."""

    name: str | None = MISSING
    config: str | None = MISSING
    revision: str | None = MISSING
    train_split: str = MISSING
    heldout_split: str = MISSING


@dataclass
class Columns:
    """Column names in files and hub data sets."""

    prompt: str = MISSING
    response: str = MISSING
    chosen: str = MISSING
    rejected: str = MISSING


@dataclass
class Data:
    """Prompts, demonstrations and preferences; lengths in tokens."""

    source: str = MISSING
    prompt_format: str = MISSING
    max_prompt_tokens: int = MISSING
    max_response_tokens: int = MISSING
    truncation: str = MISSING
    tokenizer_vocabulary: int = MISSING
    demo: DemoData = MISSING
    files: Files = MISSING
    hub: Hub = MISSING
    columns: Columns = MISSING


@dataclass
class Training:
    """What the three stages share. Batches are global, in sequences (reward: comparisons)."""

    epochs: int = MISSING
    max_steps: int | None = MISSING
    batch_size: int = MISSING
    micro_batch_size: int | None = MISSING
    learning_rate: float = MISSING
    schedule: str = MISSING
    warmup_steps: int = MISSING
    weight_decay: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    max_grad_norm: float = MISSING
    gradient_checkpointing: bool = MISSING
    max_nonfinite: int = MISSING
    eval_every: int | None = MISSING


@dataclass
class Sft(Training):
    """Supervised fine-tuning."""

    dropout: float = MISSING
    loss_on: str = MISSING


@dataclass
class Reward(Training):
    """Reward modelling."""

    dropout: float = MISSING
    grouped: bool = MISSING
    normalize: str = MISSING


@dataclass
class Text:
    """Plain text for PPO's pre-training loss."""

    source: str = MISSING
    file: str | None = MISSING
    hub: str | None = MISSING
    config: str | None = MISSING
    revision: str | None = MISSING
    split: str = MISSING
    column: str = MISSING


@dataclass
class Ppo(Training):
    """PPO. KL is in nats; a key without `critic_` is the actor's."""

    actor: str | None = MISSING
    reward: str | None = MISSING
    critic: str = MISSING
    rollout_batch_size: int = MISSING
    update_epochs: int = MISSING
    critic_learning_rate: float = MISSING
    critic_weight_decay: float = MISSING
    critic_gradient_checkpointing: bool = MISSING
    dropout: float = MISSING
    critic_dropout: float = MISSING
    kl_controller: str = MISSING
    kl_coef: float = MISSING
    kl_target: float = MISSING
    kl_horizon: float = MISSING
    reward_clip: float | None = MISSING
    whiten_rewards: bool = MISSING
    eos_penalty: float | None = MISSING
    eos_penalty_mode: str = MISSING
    length_penalty: float = MISSING
    train_on_eos: bool = MISSING
    gamma: float = MISSING
    gae_lambda: float = MISSING
    whiten_advantages: bool = MISSING
    clip_range: float = MISSING
    value_clip_range: float = MISSING
    value_coef: float = MISSING
    log_ratio_clip: float = MISSING
    ratio_tolerance: float | None = MISSING
    ptx_coef: float = MISSING
    ptx: Text = MISSING
    ema: bool = MISSING
    ema_decay: float = MISSING
    ema_start: int = MISSING
    ema_interval: int = MISSING


@dataclass
class Rollout:
    """How responses are sampled; lengths in tokens."""

    engine: str = MISSING
    do_sample: bool = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    top_p: float = MISSING
    max_new_tokens: int = MISSING
    min_new_tokens: int = MISSING
    fixed_length: bool = MISSING
    micro_batch_size: int | None = MISSING


@dataclass
class Wandb:
    """Weights & Biases."""

    enabled: bool = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    mode: str | None = MISSING


@dataclass
class Tracking:
    """Trackers besides metrics.jsonl."""

    tensorboard: bool = MISSING
    wandb: Wandb = MISSING


@dataclass
class Launcher:
    """Where stages run."""

    kind: str = MISSING
    threads: int | None = MISSING
    lock_timeout_s: float = MISSING
    allow_code_change: bool = MISSING


@dataclass
class Config:
    """The whole configuration: what `args` is in `DeepSpeedRLHFEngine(..., args=args)`."""

    stages: list[str] = MISSING
    seed: int = MISSING
    name: str = MISSING
    output_root: str = MISSING
    model: Model = MISSING
    reward_model: Model = MISSING
    hardware: Hardware = MISSING
    precision: Precision = MISSING
    zero: Zero = MISSING
    critic_zero: Zero = MISSING
    reference_zero: Zero = MISSING
    reward_zero: Zero = MISSING
    lora: Lora = MISSING
    critic_lora: Lora = MISSING
    reward_lora: Lora = MISSING
    data: Data = MISSING
    sft: Sft = MISSING
    reward: Reward = MISSING
    ppo: Ppo = MISSING
    rollout: Rollout = MISSING
    tracking: Tracking = MISSING
    launcher: Launcher = MISSING


ZEROS = ("zero", "critic_zero", "reference_zero", "reward_zero")
LORAS = ("lora", "critic_lora", "reward_lora")
# Of ZeRO's keys those that change numbers by more than rounding.
QUANTIZED = ("quantized_weights", "quantized_gradients")

# Raised when the meaning of a stage's result changes, so that older results are not taken for it.
SCHEMA_VERSION = 2

# The keys that decide each stage's result, by prefix. `ppo.actor`, `ppo.reward` and `ppo.critic` enter as the identity of
# what they name (experiment/fingerprint.py), and so do paths of models and files.
RESULT_KEYS: dict[str, tuple[str, ...]] = {
    "sft": ("seed", "model", "precision", "lora", "data", "sft", *(f"zero.{key}" for key in QUANTIZED)),
    "reward": (
        "seed", "reward_model", "precision", "reward_lora", "data", "reward", *(f"reward_zero.{key}" for key in QUANTIZED),
    ),
    "ppo": (
        "seed", "precision", "lora", "critic_lora", "data", "ppo", "rollout",
        *(f"{zero}.{key}" for zero in ZEROS for key in QUANTIZED),
    ),
}  # fmt: skip

# The keys that never change a result beyond rounding: places, speeds and names.
PLACE_KEYS: tuple[str, ...] = (
    "stages", "name", "output_root", "hardware", "tracking", "launcher", "model.name", "reward_model.name",
    *(f"{zero}.{field.name}" for zero in ZEROS for field in fields(Zero) if field.name not in QUANTIZED),
    "sft.micro_batch_size", "sft.gradient_checkpointing",
    "reward.micro_batch_size", "reward.gradient_checkpointing",
    "ppo.micro_batch_size", "ppo.gradient_checkpointing", "ppo.critic_gradient_checkpointing", "ppo.actor", "ppo.reward",
    "ppo.critic", "sft.max_nonfinite", "reward.max_nonfinite", "ppo.max_nonfinite",
    "lora.save_merged", "critic_lora.save_merged", "reward_lora.save_merged",
    "rollout.engine", "rollout.micro_batch_size",
)  # fmt: skip


def leaf_keys(schema: Any = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, in order of declaration."""
    hints = get_type_hints(schema)
    keys: list[str] = []
    for field in fields(schema):
        kind: Any = hints[field.name]
        name = prefix + field.name
        keys += leaf_keys(kind, name + ".") if is_dataclass(kind) else [name]
    return keys


def covered(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether one of the prefixes is `key` or a group that holds it."""
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
