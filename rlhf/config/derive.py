"""What follows from the configuration: ranks, micro-batches, accumulation, the models a stage holds."""

from dataclasses import dataclass, replace

from rlhf.config.errors import ConfigError
from rlhf.config.memory import Role, count_fitting_sequences, divisors, largest_micro_batch, state_gib
from rlhf.config.schema import Config, Lora, Model, Training

# The families that can be built with random weights (transformers' names); at a path, anything that it can load.
FAMILIES = (
    "opt", "bloom", "gpt_neox", "gptj", "gpt_neo", "gpt2", "codegen", "llama", "qwen2", "qwen3", "mistral", "gemma2",
)  # fmt: skip


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


def shard_layout(config: Config, stage: str) -> dict[str, str | int]:
    """The keys on which it depends what each rank keeps of the models that the stage trains."""
    keys: dict[str, str | int] = {
        "hardware.nodes": config.hardware.nodes,
        "hardware.gpus_per_node": config.hardware.gpus_per_node,
    }
    trained = {"sft": ("zero",), "reward": ("reward_zero",), "ppo": ("zero", "critic_zero"), "bench": ()}[stage]
    return keys | {
        f"{zero}.{key}": getattr(getattr(config, zero), key) for zero in trained for key in ("stage", "bucket_elements")
    }


def trained_stages(config: Config) -> list[str]:
    """The stages whose training settings are used: those that run, or those of which a benchmark measures steps."""
    if "bench" not in config.stages:
        return config.stages
    return ["sft", "reward", "ppo"] if config.bench.what == "stages" else ["ppo"]


def benchmark_config(config: Config) -> Config:
    """What a benchmark measures of a configuration: models of its shapes with random weights, and with as many positions
    as the longest sequence needs. Nothing is loaded."""
    model, reward_model = (
        replace(
            model, path=None, revision=None, gguf_file=None, trust_remote_code=False,
            positions=max(model.positions, max_sequence(config)),
        )
        for model in (config.model, config.reward_model)
    )  # fmt: skip
    critic = config.ppo.critic if config.ppo.critic == "actor" else "reward"
    return replace(
        config, model=model, reward_model=reward_model, ppo=replace(config.ppo, actor=None, reward=None, critic=critic)
    )


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
        raise ConfigError(
            f"{stage}.micro_batch_size",
            micro,
            f"it does not divide the {per_rank} sequences of a rank",
            f"try one of {divisors(per_rank)}",
        )
    return Batches(world, per_rank, micro, per_rank // micro)


def derived_micro_batch(config: Config, stage: str, per_rank: int) -> int:
    """The largest micro-batch that surely fits beside the stage's weights and optimiser state."""
    held = roles(config, stage)
    state = sum(state_gib(role, config) for role in held)
    tokens = max_sequence(config) * (2 if stage == "reward" else 1)  # a pair has two answers
    checkpointing = [getattr(config, stage).gradient_checkpointing]
    if stage == "ppo":
        checkpointing.append(config.ppo.critic_gradient_checkpointing)
    trained = [role.model for role in held if role.lora is not None]
    return min(
        largest_micro_batch(model, config, per_rank, tokens, state, recomputed)
        for model, recomputed in zip(trained, checkpointing, strict=True)
    )


def roles(config: Config, stage: str) -> list[Role]:
    """The models that a stage holds; with adapters alone, a frozen model shares the weights of the one that learns."""
    if stage == "sft":
        return [Role(config.model, config.zero, config.lora)]
    if stage == "reward":
        return [Role(config.reward_model, config.reward_zero, config.reward_lora)]
    critic = config.model if config.ppo.critic == "actor" else config.reward_model
    held = [
        Role(config.model, config.zero, config.lora, config.ppo.ema),
        Role(critic, config.critic_zero, config.critic_lora),
    ]
    if not is_reference_shared(config):
        held.append(Role(config.model, config.reference_zero, None))
    if not is_reward_shared(config):
        held.append(Role(config.reward_model, config.reward_zero, None))
    return held


def trains_adapters_only(lora: Lora) -> bool:
    """Whether adapters alone are trained."""
    return lora.rank > 0 and lora.only


def logged_learning_rate(lora: Lora, rate: float) -> float:
    """The peak learning rate of what mostly learns: adapters that are alone, or the model."""
    return lora.learning_rate if trains_adapters_only(lora) and lora.learning_rate is not None else rate


def is_reference_shared(config: Config) -> bool:
    """Whether the reference is the actor with its adapters off, instead of a second copy."""
    return trains_adapters_only(config.lora)


def is_reward_shared(config: Config) -> bool:
    """Whether the reward model is the critic with its adapters off, instead of a copy of its own."""
    return config.ppo.critic == "reward" and trains_adapters_only(config.critic_lora)


def answers_per_pass(config: Config) -> int:
    """The most answers that a forward pass of the reward stage's training reads: two for each comparison of
    `reward.micro_batch_size`, or, where that is null, as many as fit beside the stage's weights and optimiser state. One
    prompt's answers beyond that, if `reward.grouped` puts many together, take several passes (stages/reward/)."""
    if config.reward.micro_batch_size is not None:
        return 2 * config.reward.micro_batch_size
    state = sum(state_gib(role, config) for role in roles(config, "reward"))
    return count_fitting_sequences(
        config.reward_model, config, max_sequence(config), state, config.reward.gradient_checkpointing
    )


def used_models(config: Config) -> list[tuple[str, Model]]:
    """The models that the stages which run start from, with their keys."""
    users = (("model", config.model, {"sft", "ppo"}), ("reward_model", config.reward_model, {"reward", "ppo"}))
    return [(key, model) for key, model, stages in users if stages & set(trained_stages(config))]
