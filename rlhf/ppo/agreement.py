"""Passes that compute the same function agree up to rounding, or the run says so and, far beyond it, stops.

Two pairs of them: the sampler's log-probabilities of what it drew against the trainer's, and the trainer's against those of
the first mini-batch of an update, when no weight has changed. Both are of the whole distribution with the sampling
temperature: penalties, top-k, top-p or a forbidden end-of-text decide which token is drawn, and are no part of what is
compared. Differences are in nats per token. A temperature below 1 multiplies the rounding of logits, and so the bounds.
With `ppo.old_logprobs=sampler` the two pairs are one: the rollout's log-probabilities are the sampler's, and the first
mini-batch compares them with the trainer's.
"""

import math

from rlhf.config.schema import Config
from rlhf.ppo.experience import Experience, first_nonfinite
from rlhf.rollout.base import Responses
from rlhf.runtime.distributed import is_main, maximum, total

# How far the sampler's log-probabilities may be from the trainer's, mean over a rollout's tokens. Rounding leaves 1e-6 in
# float32 and up to 6e-4 in bf16 (tiny models, measured), more in deep ones: NeMo-RL's recipes take exp of it up to 1.1. A
# wrong position, mask or weight leaves 0.3 and more at each token that it concerns.
SAMPLER_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}
# So many times the bound ends the run.
FATAL = 10.0
# How far the first mini-batch's may be from the rollout's: a single token, and the mean over the mini-batch's tokens. In
# bf16 logits near 32 have steps of 0.125, so that a single token tells little.
RATIO_TOLERANCE = {"fp32": (1e-3, 1e-3), "bf16": (0.5, 0.02), "fp16": (0.5, 0.02)}


def compare_sampler(config: Config, rollout: int, experience: Experience, responses: Responses) -> dict[str, float]:
    """Check the sampler's log-probabilities of a rollout against the actor's; returns their gap over all ranks, as
    metrics. A rollout that is not finite is left out of training anyway, and judged only by a gap that is."""
    gaps = (responses.logprobs - experience.logprobs).abs() * experience.mask
    gap, tokens = total(float(gaps.sum()), float(experience.mask.sum()))
    mean, largest = gap / tokens, maximum(float(gaps.max()))
    if math.isfinite(mean) or first_nonfinite(experience) is None:
        check_sampler(config, rollout, mean, largest)
    return gap_metrics(mean, largest)


def compare_first_minibatch(config: Config, rollout: int, mean: float, largest: float) -> dict[str, float]:
    """Check the first mini-batch's log-probabilities against the rollout's, from which they are so far apart over all
    ranks; returns what that says of the sampler, as metrics. What is not finite is not judged: its update is left out."""
    if config.ppo.old_logprobs == "actor":
        check_first_ratio(config, rollout, mean, largest)
        return {}
    if math.isfinite(mean):
        check_sampler(config, rollout, mean, largest)
    return gap_metrics(mean, largest)


def gap_metrics(mean: float, largest: float) -> dict[str, float]:
    """Return the metrics of how far sampler and trainer are apart."""
    return {"policy/sampler_gap": mean, "policy/sampler_gap_max": largest}


def check_sampler(config: Config, rollout: int, mean: float, largest: float) -> None:
    """Warn where the sampler's log-probabilities of a rollout differ from the trainer's by more than
    `ppo.sampler_tolerance`, `mean` over all tokens of all ranks. Raises RuntimeError for ten times as much, or a mean that
    is not finite: the responses were not drawn from the policy that learns from them."""
    bound = config.ppo.sampler_tolerance
    if bound is None:
        bound = SAMPLER_TOLERANCE[rounding_of(config)] * sharpness(config)
    if mean <= bound:
        return
    told = (
        f"rollout {rollout}: the sampler's log-probabilities are {mean:.2g} nats per token from the trainer's (largest "
        f"{largest:.2g}), more than"
    )
    if mean <= FATAL * bound:
        warn_main(f"warning: {told} ppo.sampler_tolerance={bound:.2g}; {FATAL:g} times the bound ends the run")
        return
    engine = config.rollout.engine
    other = "" if engine == "hf" else "try rollout=hf, or "
    raise RuntimeError(
        f"{told} {FATAL:g} times ppo.sampler_tolerance={bound:.2g}: rollout={engine} draws responses from another "
        f"distribution than the policy's; {other}set ppo.sampler_tolerance to the mean that you accept"
    )


def check_first_ratio(config: Config, rollout: int, mean: float, largest: float) -> None:
    """Raise RuntimeError where the first mini-batch of a rollout's updates does not reproduce its log-probabilities, since
    the updates would follow a wrong gradient. In half precision a single token beyond the bound is a warning. What is not
    finite is not judged: its update is left out."""
    single, average = (bound * sharpness(config) for bound in RATIO_TOLERANCE[config.precision.dtype])
    if config.ppo.ratio_tolerance is not None:
        single = average = config.ppo.ratio_tolerance
    if not (mean > average or largest > single):
        return
    told = (
        f"rollout {rollout}: the first mini-batch gives log-probabilities up to {largest:.2g} nats (mean {mean:.2g}) from "
        f"the rollout's, more than {single:.2g} (mean {average:.2g}, ppo.ratio_tolerance)"
    )
    if mean > average or config.precision.dtype == "fp32":
        raise RuntimeError(f"{told}: the two passes do not compute the same function")
    warn_main(f"warning: {told}; their mean is within its bound")


def rounding_of(config: Config) -> str:
    """Return the number format that decides how far two right passes may differ: quantised weights count as half
    precision."""
    return "bf16" if config.zero.zero_quantized_weights and config.precision.dtype == "fp32" else config.precision.dtype


def sharpness(config: Config) -> float:
    """Return what the sampling temperature multiplies differences of logits by, at least 1."""
    return 1.0 / min(1.0, config.rollout.temperature)


def warn_main(text: str) -> None:
    """Tell the user, from one rank."""
    if is_main():
        print(text, flush=True)
