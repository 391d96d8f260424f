"""Every metric's name, its unit and its meaning. A name that is not here cannot be logged."""

# The parts of a step of PPO.
PHASES = ("rollout", "score", "train")
# Groups whose values depend on the machine; all others depend on the configuration alone.
MACHINE_GROUPS = ("time", "throughput", "memory")

# Sequences per second: of what a step is, or of the part of one that is measured.
RATES = (
    "throughput/samples_per_s",
    *(f"throughput/{part}_samples_per_s" for part in ("ppo", "reward", "sft", *PHASES)),
)

METRICS: dict[str, tuple[str, str]] = {
    "train/loss": ("nats", "training loss of the step: per token (sft), per comparison (reward)"),
    "train/accuracy": ("share", "pairs of the step that the reward model orders as the labels do; a tie is half of one"),
    "train/grad_norm": ("", "gradient norm before clipping"),
    "train/nonfinite": ("steps", "1 if the step was left out because a loss, score or KL was not finite"),
    "train/epoch": ("passes", "passes over the training records so far"),
    "lr/model": ("", "learning rate of the step"),
    "lr/actor": ("", "the actor's learning rate at the last update"),
    "lr/critic": ("", "the critic's learning rate at the last update"),
    "data/responses": ("responses", "different responses that training and evaluation read"),
    "data/responses_cut": ("responses", "of which: cut at data.max_response_tokens, and so without an end"),
    "data/texts": ("texts", "texts of ppo.ptx"),
    "data/texts_cut": ("texts", "of which: cut at the longest sequence, and so without an end"),
    "data/ties": ("pairs", "pairs of comparisons whose two responses are the same, which teach and measure nothing"),
    "eval/loss": ("nats", "held-out loss: per completion token (sft), per pair (reward)"),
    "eval/perplexity": ("", "exp of the held-out loss per completion token"),
    "eval/perplexity_initial": ("", "the same of the model that training started from"),
    "eval/accuracy": ("share", "held-out pairs that the reward model orders as the labels do; a tie is half of one"),
    "eval/accuracy_initial": ("share", "the same of the model that training started from, whose head is random"),
    "eval/accuracy_ceiling": ("share", "what a perfect judge reaches on those labels, noise and all"),
    "eval/accuracy_gold": ("share", "held-out pairs that the reward model orders as the gold reward does, ties left out"),
    "eval/margin": ("reward", "mean score of the preferred minus the other answer, held-out"),
    "eval/reward_bias": ("reward", "mean raw score of held-in demonstrations, subtracted from every score"),
    "eval/reward_scale": ("reward", "standard deviation of those, which every score is divided by"),
    "eval/reward": ("reward", "mean score of the policy's responses to held-out prompts"),
    "eval/reward_sft": ("reward", "the same of the model that PPO started from"),
    "eval/gold": ("gold", "mean gold reward of the policy on held-out prompts"),
    "eval/gold_sft": ("gold", "the same of the model that PPO started from"),
    "eval/gold_sft_std": ("gold", "its standard deviation over prompts"),
    "eval/kl_sequence": ("nats", "KL to the reference on held-out prompts, per response"),
    "eval/length": ("tokens", "mean response length on held-out prompts"),
    "eval/length_sft": ("tokens", "the same of the model that PPO started from"),
    "reward/mean": ("reward", "mean score of the rollout, before clipping and penalties"),
    "reward/std": ("reward", "its standard deviation over responses"),
    "reward/raised": ("responses", "responses without end whose score the penalty for it raised instead"),
    "reward/shaped": ("reward", "mean score after clipping and penalties"),
    "reward/return": ("reward", "mean undiscounted sum of token rewards, KL penalty included"),
    "kl/sequence": ("nats", "KL to the reference per response (k1), what the adaptive controller steers"),
    "kl/token": ("nats", "the same per token"),
    "kl/sequence_k3": ("nats", "KL per response by the k3 estimator, which is never negative"),
    "kl/token_k3": ("nats", "the same per token"),
    "kl/coef": ("", "coefficient of the KL penalty"),
    "policy/loss": ("", "clipped surrogate loss per token, mean over the rollout's updates"),
    "policy/ptx_loss": ("nats", "language-modelling loss per token on ppo.ptx, before its coefficient"),
    "policy/entropy": ("nats", "entropy of the token distributions, mean over the rollout's updates"),
    "policy/ratio_first": ("", "largest deviation of the ratio from 1 in the first mini-batch"),
    "policy/ratio_max": ("", "largest ratio in the rollout's updates"),
    "policy/clip_fraction": ("share", "tokens whose ratio was clipped to the worse side"),
    "policy/log_ratio_cut": ("tokens", "log-ratios beyond ppo.log_ratio_clip"),
    "policy/approx_kl": ("nats", "k3 estimate of KL(old || new) per token, mean over the rollout's updates"),
    "policy/grad_norm": ("", "the actor's gradient norm before clipping, mean over the rollout's updates"),
    "policy/overflows": ("updates", "updates that both models left out because of the actor's gradient"),
    "value/overflows": ("updates", "the same because of the critic's gradient"),
    "policy/sampler_gap": ("nats", "mean |sampler's - trainer's log-probability| per token"),
    "policy/sampler_gap_max": ("nats", "the largest such gap"),
    "value/loss": ("", "half squared value error per token, mean over the rollout's updates"),
    "value/mean": ("reward", "mean value of the rollout's states"),
    "value/clip_fraction": ("share", "tokens whose value was clipped to the worse side"),
    "value/explained_variance": ("share", "1 - variance of (return - value) / variance of return"),
    "value/grad_norm": ("", "the critic's gradient norm before clipping, mean over the rollout's updates"),
    "length/response": ("tokens", "mean response length, end-of-text included"),
    "length/prompt": ("tokens", "mean prompt length"),
    "length/ended": ("share", "responses that reached end-of-text or a stop text"),
    "time/step_s": ("s", "wall time of the step"),
    "time/rollout_s": ("s", "of which: sampling responses"),
    "time/score_s": ("s", "of which: log-probabilities, reference, values, scores"),
    "time/train_s": ("s", "of which: updates"),
    "time/decode_step_ms": ("ms", "wall time of a rollout per step of its longest response, reading the prompts included"),
    "time/decode_limit_ms": ("ms", "the same if it were what reading weights and cache takes at the copy bandwidth"),
    "time/sft_s": ("s", "wall time of a step of supervised fine-tuning, in a benchmark"),
    "time/reward_s": ("s", "the same of reward modelling"),
    "time/ppo_s": ("s", "the same of PPO: a rollout, its scoring, its updates"),
    "throughput/samples_per_s": ("1/s", "sequences per second, all ranks"),
    "throughput/tokens_per_s": ("1/s", "real tokens per second, all ranks"),
    "throughput/tflops_per_gpu": ("TFLOP/s", "operations on real tokens, per device"),
    "throughput/mfu": ("share", "the same over the device's peak in this number format"),
    "throughput/decode_gb_s": ("GB/s", "weights and cache that a rollout reads, over its time, per device"),
    "throughput/copy_gb_s": ("GB/s", "bytes read and bytes written by a large copy in the device's memory, over its time"),
    "throughput/decode_share": ("share", "the former over the latter: how near a rollout is to the memory's limit"),
} | {
    f"throughput/{phase}_{figure}": (unit, f"{meaning} of the {phase} {'phase' if phase in PHASES else 'stage'}")
    for phase in (*PHASES, "sft", "reward", "ppo")
    for figure, unit, meaning in (
        ("samples_per_s", "1/s", "sequences per second, all ranks,"),
        ("tokens_per_s", "1/s", "real tokens per second, all ranks, (rollout: sampled ones)"),
        ("tflops_per_gpu", "TFLOP/s", "operations on real tokens, per device,"),
        ("mfu", "share", "share of the device's peak"),
    )
} | {
    "memory/peak_gib": ("GiB", "largest memory in use on a device since the start of the stage (CPU: the process)"),
}  # fmt: skip
# Held-out figures that come with a standard error over prompts (rlhf/algo/errors.py).
WITH_ERROR = (
    "loss", "perplexity", "perplexity_initial", "accuracy", "accuracy_initial", "accuracy_gold", "margin", "reward",
    "reward_sft", "gold", "gold_sft", "kl_sequence", "length", "length_sft",
)  # fmt: skip
METRICS |= {
    f"eval/{name}_se": (METRICS[f"eval/{name}"][0], f"standard error of eval/{name} over held-out prompts")
    for name in WITH_ERROR
}


def check_names(metrics: dict[str, float]) -> None:
    """Refuse a metric that the table does not have."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise KeyError(f"metrics without an entry in rlhf/catalog/metric.py: {', '.join(unknown)}")
