"""The operations of PPO and of its phases, by formula: no torch."""

from rlhf.config.schema import Config, Model
from rlhf.planner.flops import forward_flops, generation_flops, training_flops


def ppo_step(config: Config) -> int:
    """Operations of a rollout, its scoring and its updates, at most."""
    return rollout_step(config) + scoring_step(config) + update_step(config)


def longest_sequence(config: Config) -> tuple[list[int], list[int]]:
    """Lengths of a rollout's prompts and responses, at most."""
    count = config.ppo.rollout_batch_size
    return [config.data.max_prompt_tokens] * count, [config.rollout.max_new_tokens] * count


def critic_of(config: Config) -> Model:
    """The critic's shape."""
    return config.model if config.ppo.critic == "actor" else config.reward_model


def rollout_step(config: Config) -> int:
    """Operations of a rollout, at most."""
    return generation_flops(config.model, *longest_sequence(config), config.lora)


def scoring_step(config: Config) -> int:
    """Operations of scoring a rollout, at most."""
    prompts, responses = longest_sequence(config)
    lengths, actions = [p + r for p, r in zip(prompts, responses, strict=True)], sum(responses)
    return (
        2 * forward_flops(config.model, lengths, actions)
        + forward_flops(critic_of(config), lengths, 0)
        + forward_flops(config.reward_model, lengths, 0)
    )


def update_step(config: Config) -> int:
    """Operations of all updates on a rollout, at most."""
    ppo, (prompts, responses) = config.ppo, longest_sequence(config)
    lengths, actions = [p + r for p, r in zip(prompts, responses, strict=True)], sum(responses)
    critic = critic_of(config), lengths, 0, config.critic_lora, ppo.critic_gradient_checkpointing, ppo.critic_dropout
    return ppo.update_epochs * (
        training_flops(config.model, lengths, actions, config.lora, ppo.gradient_checkpointing, ppo.dropout)
        + training_flops(*critic)
    )
