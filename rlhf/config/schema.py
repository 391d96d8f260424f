"""Every configuration key, once: its name and its type. Values and their meaning stand in conf/, one file per option.

Sequences are counted over all ranks unless a name says otherwise; lengths are in tokens, times in seconds, KL in nats.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class Model:
    """A model's origin and shape. Widths are in elements; `num_parameters` counts the language model, a tied head once."""

    name: str = MISSING
    family: str = MISSING
    path: str | None = MISSING
    revision: str | None = MISSING
    gguf_file: str | None = MISSING
    num_hidden_layers: int = MISSING
    hidden_size: int = MISSING
    num_attention_heads: int = MISSING
    num_key_value_heads: int = MISSING
    head_dim: int = MISSING
    intermediate_size: int = MISSING
    gated_mlp: bool = MISSING
    word_embed_proj_dim: int = MISSING
    do_layer_norm_before: bool = MISSING
    vocab_size: int = MISSING
    max_position_embeddings: int = MISSING
    tie_word_embeddings: bool = MISSING
    num_parameters: int = MISSING
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
    offload_param: bool = MISSING
    reduce_bucket_size: int = MISSING
    stage3_param_persistence_threshold: int = MISSING
    stage3_max_live_parameters: int = MISSING
    zero_quantized_weights: bool = MISSING
    zero_quantized_gradients: bool = MISSING
    zero_hpz_partition_size: int | None = MISSING


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
    tokenizer_vocab_size: int = MISSING
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
    packing: str = MISSING
    offload_idle: bool = MISSING
    compile: bool = MISSING
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
    eos_penalty_mode: str | None = MISSING
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
    sampler_tolerance: float | None = MISSING
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
    graphs: bool = MISSING
    release_cache: bool = MISSING
    gather: str = MISSING
    tensor_parallel: int = MISSING
    samples_per_prompt: int = MISSING
    do_sample: bool = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    top_p: float = MISSING
    repetition_penalty: float = MISSING
    stop: list[str] = MISSING
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
class Checkpoint:
    """When an unfinished stage is saved, and what is done with what was saved."""

    every_steps: int | None = MISSING
    every_minutes: float | None = MISSING
    keep: int = MISSING
    on_error: str = MISSING
    resume: bool = MISSING


@dataclass
class Search:
    """What `-m` with intervals looks for, and how."""

    objective: str = MISSING
    direction: str = MISSING
    sampler: str = MISSING
    trials: int = MISSING


@dataclass
class Bench:
    """What `python -m rlhf bench` and stage=bench measure."""

    what: str = MISSING
    lengths: str = MISSING
    repeats: int = MISSING
    engines: list[str] | None = MISSING


@dataclass
class Launcher:
    """Where stages run; the keys from `partition` on are SLURM's."""

    kind: str = MISSING
    threads: int | None = MISSING
    parallel: int = MISSING
    grace_s: float = MISSING
    lock_timeout_s: float = MISSING
    allow_code_change: bool = MISSING
    snapshot: bool = MISSING
    wait: bool = MISSING
    partition: str | None = MISSING
    account: str | None = MISSING
    qos: str | None = MISSING
    constraint: str | None = MISSING
    time_minutes: int = MISSING
    memory_gib: int | None = MISSING
    cpus_per_gpu: int | None = MISSING
    setup: list[str] = MISSING
    array_parallelism: int = MISSING
    signal_delay_s: int = MISSING
    max_requeues: int = MISSING
    additional: dict[str, Any] | None = MISSING


@dataclass
class Config:
    """The whole configuration: what `args` is in `DeepSpeedRLHFEngine(..., args=args)`."""

    stages: list[str] = MISSING
    seed: int = MISSING
    name: str = MISSING
    output_root: str = MISSING
    dry_run: bool = MISSING
    checkpoint: Checkpoint = MISSING
    sweep: Search = MISSING
    bench: Bench = MISSING
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
