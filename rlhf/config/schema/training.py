"""How the stages train, and how PPO samples. Any is the type of keys that may be `auto`."""

from dataclasses import dataclass
from typing import Any

from rlhf.config.metadata import BATCH, COEFFICIENT, COUNT, FINITE, FROM_ZERO, RATE, SHARE, Range, above_zero, key
from rlhf.config.schema.data import Text

# The estimators of advantages of this package (rlhf/catalog/estimator.py).
ESTIMATORS = ("gae", "rloo", "grpo", "reinforce", "remax", "raft", "online_dpo")


@dataclass
class Training:
    """What the three stages share. Batches are global, in sequences (reward: comparisons)."""

    epochs: float = key(above_zero(1e6), content="passes", unit="passes")
    max_steps: int | None = key(COUNT, unit="steps")
    batch_size: int = key(BATCH, unit="sequences")
    micro_batch_size: int | None = key(BATCH, effect="speed", unit="sequences")
    learning_rate: float = key(RATE)
    schedule: str = key(choices=("linear", "cosine", "constant"))
    warmup_steps: int = key(FROM_ZERO, unit="steps")
    weight_decay: float = key(Range(0, 1e3))
    betas: list[float] = key(SHARE)
    eps: float = key(Range(0, 1))
    max_grad_norm: float = key(above_zero(1e12))
    packing: str = key(choices=("packed", "length", "none"), effect="speed")
    gradient_checkpointing: Any = key(choices=(False, True), auto=True, effect="speed")
    max_nonfinite: int = key(COUNT, effect="name")
    eval_every: int | None = key(COUNT)


@dataclass
class Sft(Training):
    """Supervised fine-tuning."""

    data: str | None = key(effect="input", neutral=None)
    micro_batch_tokens: int | None = key(COUNT, effect="speed", neutral=None, unit="tokens")
    dropout: float = key(SHARE)
    loss_on: str = key(choices=("completion", "assistant", "full"))


@dataclass
class Reward(Training):
    """Reward modelling."""

    data: str | None = key(effect="input", neutral=None)
    batch_size: int = key(BATCH, unit="comparisons")
    micro_batch_size: int | None = key(BATCH, effect="speed", unit="comparisons")
    micro_batch_tokens: int | None = key(COUNT, effect="speed", neutral=None, unit="tokens")
    dropout: float = key(SHARE)
    grouped: bool = key()
    normalize: str = key(choices=("bias", "standard", "none"))
    member: int = key(FROM_ZERO, neutral=0)
    loss: str = key(choices=("pairs", "token_wise", "plackett_luce"), neutral="pairs")
    margin_coef: float = key(COEFFICIENT, neutral=0.0)
    label_smoothing: float = key(Range(0, 0.5, open_high=True), neutral=0.0)
    center_coef: float = key(COEFFICIENT, neutral=0.0)


@dataclass
class Dpo(Training):
    """Direct preference optimisation and its kin."""

    data: str | None = key(effect="input", neutral=None)
    batch_size: int = key(BATCH, unit="pairs or responses")
    micro_batch_size: int | None = key(BATCH, effect="speed", unit="pairs or responses")
    policy: str | None = key(effect="input")
    dropout: float = key(SHARE)
    unpaired: bool = key(neutral=False)
    loss: str = key(choices=("dpo", "cdpo", "robust", "ipo", "hinge", "dpo_norm", "kto", "simpo", "orpo", "cpo"))
    beta: float = key(above_zero(1e6))
    label_smoothing: float = key(Range(0, 0.5, open_high=True))
    ipo_sums: bool = key(neutral=False)
    simpo_gamma: float = key(FINITE)
    nll_coef: float = key(COEFFICIENT, neutral=0.0)
    desirable_weight: float = key(COEFFICIENT, neutral=1.0)
    undesirable_weight: float = key(COEFFICIENT, neutral=1.0)
    mix: dict[str, Any] | None = key(neutral=None)


@dataclass
class BestOfN:
    """A data set made of a policy's own responses."""

    policy: str | None = key(effect="input", neutral=None)
    judge: str = key(choices=("rewards", "gold"), neutral="rewards")
    format: str = key(choices=("pairs", "responses"), neutral="pairs")
    rival: str = key(choices=("worst", "random"), neutral="worst")
    max_prompts: int | None = key(COUNT, neutral=None, unit="prompts")
    batch_size: int = key(BATCH, effect="speed", neutral=256, unit="sequences")
    micro_batch_size: int | None = key(BATCH, effect="speed", neutral=None, unit="sequences")


@dataclass
class Ppo(Training):
    """PPO. KL is in nats; a key without `critic_` is the actor's."""

    actor: str | None = key(effect="input")
    reward: str | None = key(effect="input")
    critic: str = key(effect="input")
    rollout_batch_size: int = key(BATCH, unit="sequences")
    update_epochs: int = key(Range(1, 1e6), unit="passes")
    offload_idle: Any = key(choices=(False, True), auto=True, effect="speed")
    critic_learning_rate: float = key(RATE)
    critic_weight_decay: float = key(Range(0, 1e3))
    critic_gradient_checkpointing: Any = key(choices=(False, True), auto=True, effect="speed")
    dropout: float = key(SHARE)
    critic_dropout: float = key(SHARE)
    estimator: str = key(choices=ESTIMATORS, neutral="gae", content="function")
    baseline_of: str = key(choices=("rewards", "score"), neutral="rewards")
    group_std: bool = key(neutral=False)
    group_of: str = key(choices=("total", "each"), neutral="total")
    best_share: float | None = key(above_zero(1), neutral=None)
    kl_placement: str = key(choices=("reward", "loss", "none"), neutral="reward")
    kl_estimator: str = key(choices=("k1", "k2", "k3"), neutral="k1")
    reference_refresh: int | None = key(COUNT, neutral=None, unit="rollouts")
    kl_controller: str = key(choices=("fixed", "adaptive"), neutral="fixed")
    kl_coef: float = key(COEFFICIENT)
    kl_target: float = key(above_zero(1e6), only_with="kl_controller", unit="nats per response")
    kl_horizon: float = key(above_zero(1e12), only_with="kl_controller", unit="sequences")
    reward_clip: float | None = key(above_zero(1e9))
    whiten_rewards: bool = key(neutral=False)
    eos_penalty: float | None = key(FINITE)
    eos_penalty_mode: str | None = key(choices=("replace", "subtract"))
    length_penalty: float = key(FINITE, neutral=0.0)
    overlong_buffer: float = key(Range(0, 1), neutral=0.0)
    overlong_penalty: float = key(COEFFICIENT, only_with="overlong_buffer", unit="reward")
    overlong_filter: bool = key(neutral=False)
    dynamic_sampling: bool = key(neutral=False)
    max_draws: int = key(COUNT, only_with="dynamic_sampling", unit="rollouts")
    train_on_eos: bool = key()
    gamma: float = key(Range(0, 1))
    gae_lambda: float = key(Range(0, 1))
    critic_gae_lambda: float | None = key(Range(0, 1), neutral=None)
    critic_warmup: int = key(FROM_ZERO, neutral=0, unit="rollouts")
    whiten_advantages: bool = key()
    policy_loss: str = key(choices=("clipped", "likelihood"), neutral="clipped")
    ratio_level: str = key(choices=("token", "sequence", "product"), neutral="token")
    loss_aggregation: str = key(choices=("token_mean", "sequence_mean", "sequence_sum", "constant"), neutral="token_mean")
    clip_range: float = key(above_zero(1e3))
    clip_range_high: float | None = key(above_zero(1e3), neutral=None)
    dual_clip: float | None = key(Range(1, 1e3, open_low=True), neutral=None)
    early_stop_kl: float | None = key(above_zero(1e3), neutral=None, unit="nats")
    entropy_coef: float = key(COEFFICIENT, neutral=0.0)
    entropy_target: float | None = key(COEFFICIENT, neutral=None, unit="nats")
    entropy_step: float = key(COEFFICIENT, only_with="entropy_target")
    value_clip_range: float = key(above_zero(1e9))
    value_coef: float = key(COEFFICIENT)
    reuse_forward: bool = key(effect="speed", neutral=False)
    old_logprobs: str = key(choices=("actor", "sampler"), neutral="actor")
    log_ratio_clip: float = key(above_zero(80), unit="nats")
    ratio_tolerance: float | None = key(above_zero(1e3), effect="name", unit="nats")
    sampler_tolerance: float | None = key(above_zero(1e3), effect="name", unit="nats")
    ptx_coef: float = key(COEFFICIENT, neutral=0.0)
    ptx: Text = key(only_with="ptx_coef")
    ema: bool = key(neutral=False)
    ema_decay: float = key(SHARE, only_with="ema")
    ema_start: int = key(FROM_ZERO, only_with="ema")
    ema_interval: int = key(COUNT, only_with="ema")


@dataclass
class Rollout:
    """How responses are sampled; lengths in tokens."""

    engine: str = key(choices=("hf", "hybrid", "paged", "deepspeed"), effect="speed")
    graphs: bool = key(effect="speed")
    release_cache: bool = key(effect="speed")
    gather: str = key(choices=("all", "layers"), auto=True, effect="speed")
    tensor_parallel: Any = key(Range(1, 1024), effect="speed", auto=True)
    samples_per_prompt: int = key(BATCH)
    do_sample: bool = key()
    temperature: float = key(Range(0.01, 100))
    top_k: int = key(FROM_ZERO)
    top_p: float = key(above_zero(1))
    repetition_penalty: float = key(above_zero(100), neutral=1.0)
    stop: list[str] = key(neutral=[])
    max_new_tokens: int = key(COUNT, unit="tokens")
    min_new_tokens: int = key(FROM_ZERO, neutral=0, unit="tokens")
    fixed_length: bool = key(neutral=False)
    micro_batch_size: Any = key(BATCH, effect="speed", unit="sequences", auto=True, optional=True)
