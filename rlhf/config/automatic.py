"""The keys that may be `auto`: what hardware decides, and no result depends on. rlhf/planner/auto.py replaces them before a
stage is described to its workers."""

from rlhf.config.schema import ZEROS

AUTO_KEYS: tuple[str, ...] = (
    *(f"{zero}.{name}" for zero in ZEROS for name in ("stage", "offload_optimizer", "offload_param")),
    "sft.gradient_checkpointing",
    "reward.gradient_checkpointing",
    "ppo.gradient_checkpointing",
    "ppo.critic_gradient_checkpointing",
    "ppo.offload_idle",
    "rollout.gather",
    "rollout.tensor_parallel",
    "rollout.micro_batch_size",
)
