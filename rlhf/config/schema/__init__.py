"""Every configuration key, once: its name, its type, its range or choices, and what it decides (rlhf/config/metadata.py).
Values and their meaning stand in conf/, one file per option.

A key that states no effect has that of its group. Sequences are counted over all ranks unless a name says otherwise;
lengths are in tokens, times in seconds, KL in nats.
"""

from dataclasses import dataclass

from rlhf.config.metadata import WHOLE, key
from rlhf.config.schema.command import Bench, Checkpoint, Health, Launcher, Plan, Publish, Search, Tracking, Wandb
from rlhf.config.schema.data import Columns, Data, DemoData, Files, Hub, Member, Text
from rlhf.config.schema.evaluation import Evaluate, EvaluateReward, Judge
from rlhf.config.schema.models import Hardware, Lora, Model, PeakTflops, Precision, Zero
from rlhf.config.schema.rewards import Rewards, RewardTerm
from rlhf.config.schema.training import BestOfN, Dpo, Ppo, Reward, Rollout, Sft, Training

__all__ = [
    "LORAS", "ZEROS", "Bench", "BestOfN", "Checkpoint", "Columns", "Config", "Data", "DemoData", "Dpo", "Evaluate",
    "EvaluateReward", "Files", "Hardware", "Health", "Hub", "Judge", "Launcher", "Lora", "Member", "Model", "PeakTflops",
    "Plan", "Ppo", "Precision", "Publish", "Reward", "RewardTerm", "Rewards", "Rollout", "Search", "Sft", "Text",
    "Tracking", "Training", "Wandb", "Zero",
]  # fmt: skip


@dataclass
class Config:
    """The whole configuration: what `args` is in `DeepSpeedRLHFEngine(..., args=args)`."""

    stages: list[str] = key(effect="name")
    seed: int = key(WHOLE, effect="result")
    name: str = key(effect="name", once=True)
    algorithm: str = key(effect="name")
    output_root: str = key(effect="name", once=True)
    dry_run: bool = key(effect="name", once=True)
    checkpoint: Checkpoint = key(effect="name")
    health: Health = key(effect="name")
    hub: Publish = key(effect="name", once=True)
    sweep: Search = key(effect="name", once=True)
    bench: Bench = key(effect="speed")
    plan: Plan = key(effect="name", once=True)
    model: Model = key(effect="result")
    reward_model: Model = key(effect="result")
    hardware: Hardware = key(effect="speed")
    precision: Precision = key(effect="result")
    zero: Zero = key(effect="speed")
    critic_zero: Zero = key(effect="speed")
    reference_zero: Zero = key(effect="speed")
    reward_zero: Zero = key(effect="speed")
    lora: Lora = key(effect="result")
    critic_lora: Lora = key(effect="result")
    reward_lora: Lora = key(effect="result")
    data: Data = key(effect="result")
    sft: Sft = key(effect="result")
    reward: Reward = key(effect="result")
    ppo: Ppo = key(effect="result")
    dpo: Dpo = key(effect="result")
    evaluate: Evaluate = key(effect="result")
    evaluate_reward: EvaluateReward = key(effect="result")
    best_of_n: BestOfN = key(effect="result")
    rewards: Rewards = key(effect="result")
    gold: str | None = key(effect="result", neutral=None, content="function")
    rollout: Rollout = key(effect="result")
    tracking: Tracking = key(effect="name")
    launcher: Launcher = key(effect="name")


ZEROS = ("zero", "critic_zero", "reference_zero", "reward_zero")
LORAS = ("lora", "critic_lora", "reward_lora")
