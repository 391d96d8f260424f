"""What follows from the configuration: ranks, micro-batches, accumulation, the models a stage holds."""

import math
from dataclasses import dataclass, replace

from rlhf.catalog.estimator import has_critic
from rlhf.catalog.role import Role
from rlhf.catalog.stage import StageKind, is_stage, kind_of, stage_kinds
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import DEFAULTS
from rlhf.config.schema import Config, Lora, Model, RewardTerm, Training
from rlhf.config.sections import with_rewards


@dataclass(frozen=True)
class Batches:
    """How a global batch of sequences is shared: `per_rank` = micro * accumulation, over `ranks` ranks."""

    ranks: int
    per_rank: int
    micro: int
    accumulation: int


def ranks(config: Config) -> int:
    """Count the processes of a stage, one per device."""
    return config.hardware.nodes * config.hardware.gpus_per_node


def shard_layout(config: Config, stage: str) -> dict[str, str | int]:
    """Return the keys that determine how a checkpoint of the stage is sharded; with other values it cannot be resumed."""
    keys: dict[str, str | int] = {
        "hardware.nodes": config.hardware.nodes,
        "hardware.gpus_per_node": config.hardware.gpus_per_node,
    }
    return keys | {
        f"{zero}.{key}": getattr(getattr(config, zero), key)
        for zero in kind_of(stage).trained
        for key in ("stage", "reduce_bucket_size")
    }


def asked_kinds(config: Config) -> list[StageKind]:
    """Return the kinds of the stages that the configuration asks for; a name that is none is left out."""
    return [kind_of(stage) for stage in config.stages if is_stage(stage)]


def trained_stages(config: Config) -> list[str]:
    """Stages whose training settings must be valid: the stages to run, or, for a benchmark, the stages that it times."""
    kinds = asked_kinds(config)
    return [stage for kind in kinds for stage in ([kind.name] if kind.measures is None else kind.measures(config))]


def samples(config: Config) -> bool:
    """Whether a stage whose training settings are used samples responses, if only to evaluate, and so reads `rollout`."""
    return any(kind_of(stage).samples for stage in trained_stages(config))


def samples_responses(config: Config) -> bool:
    """Whether a stage whose training settings are used learns from responses that it samples, and so reads `ppo` too."""
    return any(kind_of(stage).samples_responses for stage in trained_stages(config))


def policy_stage(config: Config) -> str:
    """Return the stage whose training settings are used and that trains a policy on its own responses. Raises ConfigError
    where the configuration asks for none."""
    found = next((stage for stage in trained_stages(config) if kind_of(stage).samples_responses), None)
    if found is None:
        names = [name for name, kind in stage_kinds().items() if kind.samples_responses]
        raise ConfigError("stages", config.stages, "none of them samples responses", f"add {' or '.join(names)}")
    return found


def measured_stage(config: Config, stage: str) -> str:
    """Return the stage whose models and training settings a stage uses: its own, or of a benchmark the last that it
    measures."""
    kind = kind_of(stage)
    return stage if kind.measures is None or not kind.trains else kind.measures(config)[-1]


def samples_responses_in(stage: str) -> bool:
    """Whether a stage trains on responses that it samples."""
    return kind_of(stage).samples_responses


def roles(config: Config, stage: str) -> list[Role]:
    """Return the models that a stage holds."""
    return kind_of(stage).roles(config)


def benchmark_config(config: Config) -> Config:
    """Return what a benchmark measures of a configuration: models of its shapes with random weights, and with as many
    positions as the longest sequence needs. Nothing is loaded."""
    model, reward_model = (
        replace(
            model, path=None, revision=None, gguf_file=None, trust_remote_code=False,
            max_position_embeddings=max(model.max_position_embeddings, max_sequence(config)),
        )
        for model in (config.model, config.reward_model)
    )  # fmt: skip
    critic = config.ppo.critic if config.ppo.critic == "actor" else "reward"
    config = with_rewards(config, {"model": RewardTerm(**DEFAULTS)})
    ppo = replace(config.ppo, actor=None, reward=None, critic=critic)
    return replace(config, model=model, reward_model=reward_model, gold=None, ppo=ppo)


def max_sequence(config: Config) -> int:
    """Longest sequence that training meets, in tokens."""
    return config.data.max_prompt_tokens + max(config.data.max_response_tokens, config.rollout.max_new_tokens)


def share_batch(config: Config, stage: str) -> tuple[int, int | None]:
    """Return a rank's share of the `batch_size` of the stage's section, and the micro-batch that is given for it; raises
    ConfigError where they do not come out even."""
    section = kind_of(stage).section
    assert section is not None, f"{stage} does not train"
    training: Training = getattr(config, section)
    world = ranks(config)
    even = f"{section}.batch_size"
    if training.batch_size < world or training.batch_size % world:
        near = max(1, round(training.batch_size / world)) * world
        raise ConfigError(even, training.batch_size, f"{world} ranks cannot share it evenly", f"try {near}")
    per_rank, micro = training.batch_size // world, training.micro_batch_size
    if micro is not None and (micro < 1 or per_rank % micro):
        raise ConfigError(
            f"{section}.micro_batch_size",
            micro,
            f"it does not divide the {per_rank} sequences of a rank",
            f"try one of {divisors(per_rank)}",
        )
    return per_rank, micro


def count_batches(epochs: float, per_epoch: int, max_steps: int | None) -> int:
    """Return the batches in so many passes of `per_epoch` each, or `max_steps` if that is less. A part of a pass is rounded
    up to whole batches, as transformers' `num_train_epochs` is, and to one at least."""
    batches = max(min(1, per_epoch), math.ceil(round(epochs * per_epoch, 6)))  # 0.1 * 30 is above 3
    return batches if max_steps is None else min(batches, max_steps)


def divisors(number: int) -> list[int]:
    """Return the divisors of a whole number above 0, in order."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def trains_adapters_only(lora: Lora) -> bool:
    """Whether adapters alone are trained."""
    return lora.rank > 0 and lora.only


def logged_learning_rate(lora: Lora, rate: float) -> float:
    """Return the peak learning rate to log: the adapters' if adapters alone are trained, else the model's."""
    return lora.learning_rate if trains_adapters_only(lora) and lora.learning_rate is not None else rate


def is_reference_shared(config: Config) -> bool:
    """Whether the reference is the actor with its adapters off, instead of a second copy."""
    return trains_adapters_only(config.lora)


def is_reward_shared(config: Config) -> bool:
    """Whether the reward model is the critic with its adapters off, instead of a copy of its own."""
    return has_critic(config) and config.ppo.critic == "reward" and trains_adapters_only(config.critic_lora)


def used_models(config: Config) -> list[tuple[str, Model]]:
    """Return the models that the stages which run start from, with their keys."""
    used = {key for stage in trained_stages(config) for key in held_keys(config, kind_of(stage))}
    return [(key, model) for key, model in (("model", config.model), ("reward_model", config.reward_model)) if key in used]


def held_keys(config: Config, kind: StageKind) -> list[str]:
    """Return the groups of the models that a stage holds with this configuration: PPO without a reward model needs no
    `reward_model`. Of a kind that states no roles, all that it names."""
    held = [role.model for role in kind.roles(config)]
    return [key for key in kind.model_keys if not held or any(model is getattr(config, key) for model in held)]
