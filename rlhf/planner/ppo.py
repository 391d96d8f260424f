"""The operations of PPO by phase: the plan, the progress of a stage and its MFU read this one function. No torch."""

from collections.abc import Sequence
from math import lcm
from operator import add

from rlhf.catalog.estimator import has_critic, has_reference, needs_of
from rlhf.config.derive import max_sequence, ranks
from rlhf.config.rewards import count_reward_models
from rlhf.config.schema import Config, Model
from rlhf.planner.cache import list_prompts_read, samples_merged
from rlhf.planner.flops import forward_flops, generation_flops, merge_flops, training_flops


def critic_of(config: Config) -> Model:
    """Return the critic's shape."""
    return config.model if config.ppo.critic == "actor" else config.reward_model


def longest_step(config: Config) -> dict[str, int]:
    """Operations of a step by phase if every prompt, response and text were as long as it may be.

    They grow by the same amount with each group of responses that share what is read, so that two groups tell those of a
    batch of any size.
    """
    own, micro = max(1, config.ppo.rollout_batch_size // ranks(config)), config.rollout.micro_batch_size
    group = lcm(config.rollout.samples_per_prompt, micro if isinstance(micro, int) else 1)
    if own <= 2 * group or own % group:
        return longest_rollout(config, own)
    first, second = longest_rollout(config, group), longest_rollout(config, 2 * group)
    return {phase: first[phase] + (own // group - 1) * (second[phase] - first[phase]) for phase in first}


def longest_rollout(config: Config, own: int) -> dict[str, int]:
    """Operations by phase of a step in which each rank has so many responses, all as long as they may be."""
    texts = [max_sequence(config)] * config.ppo.update_epochs if config.ppo.ptx_coef > 0 else []
    lengths = [config.data.max_prompt_tokens] * own, [config.rollout.max_new_tokens] * own
    return {phase: ranks(config) * flops for phase, flops in phase_flops(config, *lengths, texts * own).items()}


def phase_flops(
    config: Config, prompts: Sequence[int], responses: Sequence[int], texts: Sequence[int] = ()
) -> dict[str, int]:
    """Operations of a rollout, of its scoring and of its updates.

    Args:
        config: The configuration of the stage.
        prompts: Tokens of each prompt of a rank, without padding, once for each of its responses.
        responses: Tokens of each response.
        texts: Tokens of each text that the updates' pre-training loss reads (`ppo.ptx_coef`).

    A reference or reward model that is another model with its adapters off costs what a copy would. An estimator that needs
    the likeliest responses too samples and scores as many as there are prompts, of the same lengths.
    """
    lengths, actions = list(map(add, prompts, responses)), sum(responses)
    model, critic, ppo = config.model, critic_of(config), config.ppo
    merged, read = samples_merged(config), list_prompts_read(config.rollout, prompts)
    merging, sampled = (merge_flops(model, config.lora), None) if merged else (0, config.lora)
    rollout = generation_flops(model, prompts, responses, sampled, read)
    judging = count_reward_models(config) * forward_flops(config.reward_model, lengths, 0)
    own = forward_flops(model, lengths, actions, config.lora) if ppo.old_logprobs == "actor" else 0
    if has_critic(config):
        own += forward_flops(critic, lengths, 0, config.critic_lora)
    scoring = judging + own
    if has_reference(config):
        scoring += forward_flops(model, lengths, actions)
    how = config.lora, ppo.gradient_checkpointing, ppo.dropout
    update = ppo.update_epochs * training_flops(model, lengths, actions, *how)
    if has_critic(config):
        learned = config.critic_lora, ppo.critic_gradient_checkpointing, ppo.critic_dropout
        update += ppo.update_epochs * training_flops(critic, lengths, 0, *learned)
    if "greedy" in needs_of(ppo.estimator):
        scoring += judging // config.rollout.samples_per_prompt
        rollout += rollout // config.rollout.samples_per_prompt
    if texts:  # logits of every token but the last, which predicts nothing, are computed and thrown away with it
        update += training_flops(model, texts, sum(texts), *how)
    return {
        "rollout": merging + rollout,
        "score": scoring,
        "update": update - own * ppo.reuse_forward,
    }
