"""What a rollout says of itself: rewards, KL, values, lengths, and how fast each phase was."""

import torch
from torch import Tensor

from rlhf.algo.kl import k1, k3
from rlhf.algo.masked import global_moments, masked_sum
from rlhf.config.schema import Config
from rlhf.planner.flops import forward_flops, generation_flops, training_flops
from rlhf.ppo.experience import Experience
from rlhf.rollout.base import Responses
from rlhf.runtime.distributed import maximum, total
from rlhf.tracking.throughput import Clock, throughput_metrics


def describe_rollout(experience: Experience, responses: Responses, shaped: Tensor, kl_coef: float) -> dict[str, float]:
    """Metrics of a rollout over all ranks; `shaped` [B] are the scores after clipping and penalties."""
    mask, ones = experience.mask, torch.ones_like(experience.scores)
    difference = experience.logprobs, experience.reference_logprobs
    gaps = (responses.logprobs - experience.logprobs).abs() * mask
    sums = total(
        float(ones.sum()),
        float(mask.sum()),
        float(experience.scores.sum()),
        float(shaped.sum()),
        float(experience.rewards.sum()),
        float(masked_sum(k1(*difference), mask)),
        float(masked_sum(k3(*difference), mask)),
        float(experience.prompt_mask.sum()),
        float(responses.ended.sum()),
        float(masked_sum(experience.values, mask)),
        float(gaps.sum()),
    )
    samples, tokens, scores, shaped_sum, rewards, kl, kl3, prompts, ended, values, gap = sums
    _, returns_std = global_moments(experience.returns, mask)
    _, error_std = global_moments(experience.returns - experience.values, mask)
    return {
        "reward/mean": scores / samples,
        "reward/std": float(global_moments(experience.scores, ones)[1]),
        "reward/shaped": shaped_sum / samples,
        "reward/return": rewards / samples,
        "kl/sequence": kl / samples,
        "kl/token": kl / tokens,
        "kl/sequence_k3": kl3 / samples,
        "kl/token_k3": kl3 / tokens,
        "kl/coef": kl_coef,
        "value/mean": values / tokens,
        "value/explained_variance": 1.0 - float(error_std**2 / (returns_std**2 + 1e-12)),
        "length/response": tokens / samples,
        "length/prompt": prompts / samples,
        "length/ended": ended / samples,
        "policy/sampler_gap": gap / tokens,
        "policy/sampler_gap_max": maximum(float(gaps.max())),
    }


def describe_speed(config: Config, experience: Experience, clock: Clock) -> dict[str, float]:
    """Times and throughput of a rollout and its updates, per phase and together, over all ranks."""
    prompts, responses = experience.prompt_mask.sum(1).tolist(), experience.mask.sum(1).tolist()
    lengths = [p + r for p, r in zip(prompts, responses, strict=True)]
    ppo, critic = config.ppo, config.model if config.ppo.critic == "actor" else config.reward_model
    actions, passes = sum(responses), ppo.update_epochs
    scoring = (
        forward_flops(config.model, lengths, actions, config.lora)
        + forward_flops(config.model, lengths, actions)
        + forward_flops(critic, lengths, 0, config.critic_lora)
        + forward_flops(config.reward_model, lengths, 0)
    )
    update = passes * (
        training_flops(config.model, lengths, actions, config.lora, ppo.gradient_checkpointing, ppo.dropout)
        + training_flops(critic, lengths, 0, config.critic_lora, ppo.critic_gradient_checkpointing, ppo.critic_dropout)
    )
    samples, sampled, tokens, rollout, score, train = total(
        len(lengths),
        sum(responses),
        sum(lengths),
        generation_flops(config.model, prompts, responses, config.lora),
        scoring,
        update,
    )
    seconds = {phase: maximum(clock.seconds[phase]) for phase in ("rollout", "score", "train")}
    whole = sum(seconds.values())
    return (
        {f"time/{phase}_s": value for phase, value in seconds.items()}
        | {"time/step_s": whole}
        | throughput_metrics(config, "rollout", seconds["rollout"], samples, sampled, rollout)
        | throughput_metrics(config, "score", seconds["score"], samples, tokens, score)
        | throughput_metrics(config, "train", seconds["train"], samples * passes, tokens * passes, train)
        | throughput_metrics(config, "", whole, samples, tokens, rollout + score + train)
    )
