"""Metrics of a rollout: rewards, KL, values, lengths, and how fast each phase was."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.algo.groups import varies
from rlhf.algo.kl import k1, k3
from rlhf.algo.masked import global_moments, masked_sum
from rlhf.config.schema import Config
from rlhf.planner.ppo import phase_flops
from rlhf.ppo.experience import Experience, ScoredSamples
from rlhf.rollout.base import Responses
from rlhf.runtime.distributed import maximum, total
from rlhf.tracking.throughput import Clock, throughput_metrics


def describe_rollout(experience: Experience, responses: Responses, shaped: Tensor, kl_coef: float) -> dict[str, float]:
    """Metrics of a rollout over all ranks; `shaped` [B] are the scores after clipping and penalties."""
    mask, ones = experience.mask, torch.ones_like(experience.scores)
    sums = total(
        float(ones.sum()),
        float(mask.sum()),
        float(experience.scores.sum()),
        float(shaped.sum()),
        float(experience.rewards.sum()),
        float(experience.prompt_mask.sum()),
        float(responses.ended.sum()),
    )
    samples, tokens, scores, shaped_sum, rewards, prompts, ended = sums
    return {
        "reward/mean": scores / samples,
        "reward/std": float(global_moments(experience.scores, ones)[1]),
        "reward/shaped": shaped_sum / samples,
        "reward/return": rewards / samples,
        **describe_kl(experience, kl_coef),
        **describe_values(experience),
        "length/response": tokens / samples,
        "length/prompt": prompts / samples,
        "length/ended": ended / samples,
    }


def describe_kl(experience: Experience, kl_coef: float) -> dict[str, float]:
    """Return the metrics of the KL to the reference; none without a reference."""
    if experience.reference_logprobs is None:
        return {}
    difference, mask = (experience.logprobs, experience.reference_logprobs), experience.mask
    kl, kl3 = float(masked_sum(k1(*difference), mask)), float(masked_sum(k3(*difference), mask))
    kl, kl3, samples, tokens = total(kl, kl3, len(mask), float(mask.sum()))
    return {
        "kl/sequence": kl / samples,
        "kl/token": kl / tokens,
        "kl/sequence_k3": kl3 / samples,
        "kl/token_k3": kl3 / tokens,
        "kl/coef": kl_coef,
    }


def describe_values(experience: Experience) -> dict[str, float]:
    """Return the metrics of the critic's values; none without a critic."""
    values, returns, mask = experience.values, experience.returns, experience.mask
    if values is None or returns is None:
        return {}
    _, returns_std = global_moments(returns, mask)
    _, error_std = global_moments(returns - values, mask)
    summed, tokens = total(float(masked_sum(values, mask)), float(mask.sum()))
    return {
        "value/mean": summed / tokens,
        "value/explained_variance": 1.0 - float(error_std**2 / (returns_std**2 + 1e-12)),
    }


def describe_groups(samples: ScoredSamples, copies: int) -> dict[str, float]:
    """Return the metrics of groups of responses, and of the likeliest ones, as far as there are any."""
    metrics: dict[str, float] = {}
    if copies > 1:
        differs = varies(samples.scores, copies, samples.is_scored)
        equal, groups = total(float((~differs).sum()), len(differs))
        metrics["group/equal"] = equal / groups
    if samples.greedy_scores is not None:
        greedy, count = total(float(samples.greedy_scores.sum()), len(samples.greedy_scores))
        metrics["reward/greedy"] = greedy / count
    return metrics


def describe_speed(
    config: Config, experience: Experience, clock: Clock, texts: Sequence[int] = (),
    drawn: Sequence[tuple[int, int]] = (), passes: float | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return times and throughput of a rollout and its updates, per phase and together, over all ranks.

    Args:
        config: The configuration.
        experience: What the updates learned from.
        clock: The seconds of the phases.
        texts: The lengths of what this rank's updates read for the pre-training loss.
        drawn: The tokens of each prompt and response that this rank drew for the rollout, where not all are part of the
            experience: they cost the same.
        passes: Passes over the experience, where not all were made.
    """
    trained = experience.lengths()
    prompts, responses = ([sizes[side] for sizes in drawn or trained] for side in (0, 1))
    own = [sizes[0] for sizes in trained], [sizes[1] for sizes in trained]
    flops, update = phase_flops(config, prompts, responses), phase_flops(config, *own)["update"]
    with_texts = phase_flops(config, *own, texts)["update"] if texts else update
    passes = config.ppo.update_epochs if passes is None else passes
    train = with_texts - update + update * passes / config.ppo.update_epochs
    samples, sampled, tokens, learned, learned_tokens, rollout, score, train = total(
        len(prompts), sum(responses), sum(prompts) + sum(responses), len(trained), sum(map(sum, trained)),
        flops["rollout"], flops["score"], train,
    )  # fmt: skip
    seconds = {phase: maximum(clock.seconds[phase]) for phase in ("rollout", "score", "train")}
    whole = sum(seconds.values())
    return (
        {f"time/{phase}_s": value for phase, value in seconds.items()}
        | {"time/step_s": whole}
        | throughput_metrics(config, "rollout", seconds["rollout"], samples, sampled, rollout)
        | throughput_metrics(config, "score", seconds["score"], samples, tokens, score)
        | throughput_metrics(config, "train", seconds["train"], learned * passes, learned_tokens * passes, train)
        | throughput_metrics(config, "", whole, samples, tokens, rollout + score + train)
    )
