"""The metrics of PPO."""

from dataclasses import replace

from rlhf.catalog.metric import POLICY_EVALUATION, TRAINING, Metric, rates_of
from rlhf.config.rewards import trained_terms
from rlhf.config.schema import Config


def rates_of_phase(phase: str, label: str) -> tuple[Metric, ...]:
    """How fast a phase of a step is; its tokens per second are a column of a report's table of throughput."""
    rates = rates_of(phase, f"of the {phase} phase", label)
    return tuple(replace(metric, speed=metric.name.endswith("_tokens_per_s")) for metric in rates)


def metrics_of_reward(name: str) -> tuple[Metric, ...]:
    """Return what is logged of a reward by its name, where rewards are several, or shaped."""
    where = f"of rewards.{name}, over the responses that it applies to"
    return (
        Metric(f"reward/{name}", "reward", f"mean raw score {where}"),
        Metric(f"reward/{name}_disagreement", "reward", "standard deviation of an ensemble's members, mean over responses"),
        Metric(f"reward/{name}_shaped", "reward", f"mean part in the sum {where}: normalised, cut and weighed"),
    )


def more_metrics(config: Config) -> tuple[Metric, ...]:
    """Return what is logged of the rewards of a configuration."""
    return tuple(metric for name in trained_terms(config) for metric in metrics_of_reward(name))


# In the order of tables.
METRICS = (
    next(metric for metric in TRAINING if metric.name == "train/nonfinite"),
    Metric("lr/actor", "", "the actor's learning rate at the last update"),
    Metric("lr/critic", "", "the critic's learning rate at the last update"),
    Metric("data/texts", "texts", "texts of ppo.ptx"),
    Metric("data/texts_cut", "texts", "texts cut at the longest sequence, and so without an end"),
    *POLICY_EVALUATION,
    Metric("reward/mean", "reward", "mean score of the rollout, before clipping and penalties",
        "mean score of rollouts", "score", format="{:.2f}", axis="mean score"),
    Metric("reward/std", "reward", "standard deviation of reward/mean over responses"),
    Metric("reward/raised", "responses", "responses without end whose score the penalty for it raised instead"),
    Metric("reward/shaped", "reward", "mean score after clipping and penalties"),
    *metrics_of_reward("model"),
    Metric("reward/unscored", "responses", "responses that no reward applies to, which train nothing"),
    Metric("reward/on_spans", "reward", "mean part of a response's score that falls on spans of it, as weighed"),
    Metric("reward/return", "reward", "mean undiscounted sum of token rewards, KL penalty included"),
    Metric("kl/sequence", "nats", "KL to the reference per response (k1), what the adaptive controller steers",
        "KL to the reference in rollouts", "KL", format="{:.1f}", axis="nats per response"),
    Metric("kl/token", "nats", "KL to the reference per token (k1)"),
    Metric("kl/sequence_k3", "nats", "KL per response by the k3 estimator, which is never negative"),
    Metric("kl/token_k3", "nats", "KL per token by the k3 estimator"),
    Metric("kl/coef", "", "coefficient of the KL penalty"),
    Metric("policy/loss", "", "the policy's loss, averaged as ppo.loss_aggregation says, mean over the rollout's updates"),
    Metric("group/equal", "share", "prompts whose responses all have one score, before shaping", format="{:.2f}"),
    Metric("group/draws", "", "draws of prompts that the rollout took (ppo.dynamic_sampling)"),
    Metric("reward/greedy", "reward", "mean score of the likeliest responses, after shaping: ReMax's baseline"),
    Metric("policy/ptx_loss", "nats", "language-modelling loss per token on ppo.ptx, before its coefficient"),
    Metric("policy/entropy", "nats", "entropy of the token distributions, mean over the rollout's updates",
        "entropy of the policy", axis="nats per token"),
    Metric("policy/ratio_first", "", "largest deviation of the ratio from 1 in the first mini-batch"),
    Metric("policy/ratio_max", "", "largest ratio in the rollout's updates"),
    Metric("policy/clip_fraction", "share", "tokens whose ratio was clipped to the worse side",
        "policy's clipped tokens", axis="share of tokens"),
    Metric("policy/clip_fraction_low", "share", "tokens of negative advantage whose ratio was below the lower bound"),
    Metric("policy/clip_fraction_high", "share", "tokens of positive advantage whose ratio was above the upper bound"),
    Metric("policy/dual_clip_fraction", "share", "tokens of negative advantage whose loss ppo.dual_clip bounded"),
    Metric("policy/kl_loss", "nats", "KL penalty in the policy's loss, before its coefficient (ppo.kl_placement=loss)"),
    Metric("policy/entropy_coef", "", "weight of the entropy bonus"),
    Metric("policy/updates", "updates", "updates on the rollout: fewer than planned where ppo.early_stop_kl ended them"),
    Metric("policy/log_ratio_cut", "tokens", "log-ratios beyond ppo.log_ratio_clip"),
    Metric("policy/approx_kl", "nats", "k3 estimate of KL(old || new) per token, mean over the rollout's updates"),
    Metric("policy/grad_norm", "", "the actor's gradient norm before clipping, mean over the rollout's updates"),
    Metric("policy/overflows", "updates", "updates that both models left out because of the actor's gradient"),
    Metric("value/overflows", "updates", "updates that both models left out because of the critic's gradient"),
    Metric("policy/sampler_gap", "nats", "mean |sampler's - trainer's log-probability| per token, of the rollout or, with "
        "ppo.old_logprobs=sampler, of its first mini-batch"),
    Metric("policy/sampler_gap_max", "nats", "largest |sampler's - trainer's log-probability| of a token, of the same"),
    Metric("value/loss", "", "half squared value error per token, mean over the rollout's updates",
        "value loss", axis="half squared error"),
    Metric("value/mean", "reward", "mean value of the rollout's states"),
    Metric("value/clip_fraction", "share", "tokens whose value was clipped to the worse side",
        "critic's clipped tokens", axis="share of tokens"),
    Metric("value/explained_variance", "share", "1 - variance of (return - value) / variance of return"),
    Metric("value/grad_norm", "", "the critic's gradient norm before clipping, mean over the rollout's updates"),
    Metric("length/response", "tokens", "mean response length, end-of-text included",
        "response length in rollouts", "length", format="{:.0f}", axis="tokens"),
    Metric("length/prompt", "tokens", "mean prompt length"),
    Metric("length/ended", "share", "responses that reached end-of-text or a stop text",
        "responses that ended", axis="share of responses"),
)  # fmt: skip
# How long the phases of a step take, and how fast they are.
PHASE_SPEED = (
    Metric("time/rollout_s", "s", "time of the step that sampling responses took"),
    Metric("time/score_s", "s", "time of the step that log-probabilities, reference, values and scores took"),
    Metric("time/train_s", "s", "time of the step that updates took"),
    *rates_of_phase("rollout", "rollout"),
    *rates_of_phase("score", "scoring"),
    *rates_of_phase("train", "training"),
)  # fmt: skip
