"""How much work a stage is: its steps, and an upper bound of its operations, before anything is loaded."""

from dataclasses import dataclass

from rlhf.config.schema import Config
from rlhf.plan.flops import forward_flops, generation_flops, training_flops


@dataclass(frozen=True)
class Work:
    """Optimiser steps (sft, reward) or rollouts (ppo), and operations if every sequence were as long as it may be."""

    steps: int
    flops: int


def work(config: Config, stage: str, records: int | None, answers: int = 2) -> Work | None:
    """The work of a stage on so many records; None if that cannot be told (no records known, no limit of steps). A record
    of the reward model has so many answers: it is a pair, or all pairs of a prompt."""
    training = getattr(config, stage)
    size = training.batch_size
    if stage == "ppo":
        size = config.ppo.rollout_batch_size // config.rollout.samples_per_prompt
    by_records = None if records is None else training.epochs * (records // size)
    known = [steps for steps in (by_records, training.max_steps) if steps is not None]
    if not known:
        return None
    steps = min(known)
    step = reward_step(config, answers) if stage == "reward" else {"sft": sft_step, "ppo": ppo_step}[stage](config)
    return Work(steps, steps * step)


def sft_step(config: Config) -> int:
    """Operations of a step of supervised fine-tuning, at most."""
    sft, lengths = config.sft, [config.data.max_prompt_tokens + config.data.max_response_tokens] * config.sft.batch_size
    return training_flops(config.model, lengths, sum(lengths), config.lora, sft.gradient_checkpointing, sft.dropout)


def reward_step(config: Config, answers: int) -> int:
    """Operations of a step of reward modelling on records of so many answers, at most."""
    reward = config.reward
    lengths = [config.data.max_prompt_tokens + config.data.max_response_tokens] * answers * reward.batch_size
    how = config.reward_lora, reward.gradient_checkpointing, reward.dropout
    return training_flops(config.reward_model, lengths, 0, *how)


def ppo_step(config: Config) -> int:
    """Operations of a rollout, its scoring and its updates, at most."""
    ppo, critic = config.ppo, config.model if config.ppo.critic == "actor" else config.reward_model
    prompts = [config.data.max_prompt_tokens] * ppo.rollout_batch_size
    responses = [config.rollout.max_new_tokens] * ppo.rollout_batch_size
    lengths = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    actions = sum(responses)
    scoring = (
        2 * forward_flops(config.model, lengths, actions)
        + forward_flops(critic, lengths, 0)
        + forward_flops(config.reward_model, lengths, 0)
    )
    updates = ppo.update_epochs * (
        training_flops(config.model, lengths, actions, config.lora, ppo.gradient_checkpointing, ppo.dropout)
        + training_flops(critic, lengths, 0, config.critic_lora, ppo.critic_gradient_checkpointing, ppo.critic_dropout)
    )
    return generation_flops(config.model, prompts, responses, config.lora) + scoring + updates
