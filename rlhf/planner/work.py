"""How much work a stage is: its steps, and an upper bound of its operations, before anything is loaded."""

from collections.abc import Callable
from dataclasses import dataclass

from rlhf.config.schema import Config, Model
from rlhf.planner.flops import forward_flops, generation_flops, training_flops


@dataclass(frozen=True)
class Work:
    """Optimiser steps (sft, reward), rollouts (ppo) or measured rounds (bench), and operations if every sequence were as
    long as it may be."""

    steps: int
    flops: int


def estimate_work(config: Config, stage: str, records: int | None, answers: int = 2) -> Work | None:
    """The work of a stage on so many records; None if that cannot be told (no records known, no limit of steps). A record
    of the reward model has so many answers: it is a pair, or all pairs of a prompt."""
    if stage == "bench":
        return bench_work(config)
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


def bench_work(config: Config) -> Work:
    """The rounds of a benchmark, and its operations with those that warm up."""
    steps: dict[str, tuple[Callable[[Config], int], ...]] = {
        "rollout": (rollout_step,),
        "score": (lambda config: rollout_step(config) + scoring_step(config),),
        "train": (update_step,),
        "step3": (ppo_step,),
        "stages": (sft_step, lambda config: reward_step(config, 2), ppo_step),
    }
    measured = steps[config.bench.what]
    rounds = config.bench.repeats * len(measured)
    once = rollout_step(config) + scoring_step(config) if config.bench.what == "train" else 0
    return Work(rounds, once + (config.bench.repeats + 1) * sum(step(config) for step in measured))


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
