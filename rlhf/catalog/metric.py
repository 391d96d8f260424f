"""The one table of metrics: what each is called, its unit, its meaning, and where people are shown it.

A name that is not in the table cannot be logged. Logs, result tables, status, reports and documentation read it.
"""

from dataclasses import dataclass

# The parts of a step of PPO.
PHASES = ("rollout", "score", "train")
# Groups whose values depend on the machine; all others depend on the configuration alone.
MACHINE_GROUPS = ("time", "throughput", "memory")


@dataclass(frozen=True)
class Panel:
    """A plot of a metric over the steps of a stage, with the words on its y axis."""

    stage: str
    axis: str


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: its name in the logs, as group/name.
        unit: its unit, empty if it has none.
        description: what it measures.
        label: what people read instead of the name, wherever there is room for it.
        short: the label where there is little room, as above a column.
        format: how one value of it is written.
        better: 1 or -1 where more or less of it is better; 0 where that depends on something else, as with the score of a
            reward model that a policy may exploit.
        final: the kind of stage whose result it belongs to, empty if it is no final figure.
        detail: 1 for a final figure that the table of a sweep leaves out, 2 for one that reports leave out too.
        panels: its plots in a report.
        speed: whether it is a column of a report's table of throughput.
        per: the time that a rate is per, as the name of another metric.
        error: whether a standard error over held-out prompts comes with it (rlhf/algo/errors.py), under its name and `_se`.
    """

    name: str
    unit: str
    description: str
    label: str = ""
    short: str = ""
    format: str = "{:.3g}"
    better: int = 0
    final: str = ""
    detail: int = 0
    panels: tuple[Panel, ...] = ()
    speed: bool = False
    per: str = ""
    error: bool = False

    @property
    def heading(self) -> str:
        """The shortest text that people read for it."""
        return self.short or self.label or self.name

    @property
    def title(self) -> str:
        """The label, with a capital letter."""
        return self.label[:1].upper() + self.label[1:]

    def with_unit(self, text: str) -> str:
        """A label of this metric, with the unit where the label does not say it."""
        return f"{text}, {self.unit}" if self.unit in ("nats", "tokens") else text

    def write(self, value: float) -> str:
        """A value as people read it."""
        return self.format.format(value)


# In the order in which tables show them.
BASE = (
    Metric("train/loss", "nats", "training loss of the step: per token (sft), per comparison (reward)",
        "training loss", "loss", format="{:.3f}",
        panels=(Panel("sft", "nats per token"), Panel("reward", "nats per comparison"))),
    Metric("train/accuracy", "share",
        "pairs of the step that the reward model orders as the labels do; a tie is half of one", "training accuracy",
        "accuracy", format="{:.2f}", panels=(Panel("reward", "share of pairs"),)),
    Metric("train/grad_norm", "", "gradient norm before clipping"),
    Metric("train/nonfinite", "steps", "1 if the step was left out because a loss, score or KL was not finite"),
    Metric("train/epoch", "passes", "passes over the training records so far"),
    Metric("lr/model", "", "learning rate of the step"),
    Metric("lr/actor", "", "the actor's learning rate at the last update"),
    Metric("lr/critic", "", "the critic's learning rate at the last update"),
    Metric("data/responses", "responses", "different responses that training and evaluation read"),
    Metric("data/responses_cut", "responses", "responses cut at data.max_response_tokens, and so without an end"),
    Metric("data/texts", "texts", "texts of ppo.ptx"),
    Metric("data/texts_cut", "texts", "texts cut at the longest sequence, and so without an end"),
    Metric("data/ties", "pairs", "pairs of comparisons whose two responses are the same, which teach and measure nothing"),
    Metric("eval/loss", "nats", "held-out loss: per completion token (sft), per pair (reward)", error=True),
    Metric("eval/perplexity_initial", "",
        "exp of the held-out loss per completion token of the model that training started from", "perplexity before SFT",
        format="{:.4g}", final="sft", detail=2, error=True),
    Metric("eval/perplexity", "", "exp of the held-out loss per completion token",
        "SFT perplexity", "perplexity", format="{:.2f}", final="sft", better=-1, error=True),
    Metric("eval/accuracy", "share", "held-out pairs that the reward model orders as the labels do; a tie is half of one",
        "reward model accuracy", "accuracy", format="{:.3f}", final="reward", better=1, error=True),
    Metric("eval/accuracy_initial", "share",
        "held-out accuracy of the model that training started from, whose head is random", error=True),
    Metric("eval/accuracy_ceiling", "share", "accuracy of a perfect judge on the held-out labels, noise and all",
        "accuracy that the label noise permits", "accuracy permitted", format="{:.3f}", final="reward", detail=1),
    Metric("eval/accuracy_gold", "share",
        "held-out pairs that the reward model orders as the gold reward does, ties left out", error=True),
    Metric("eval/margin", "reward", "mean score of the preferred minus the other answer, held-out", error=True),
    Metric("eval/reward_bias", "reward", "mean raw score of held-in demonstrations, subtracted from every score"),
    Metric("eval/reward_scale", "reward", "standard deviation of these scores, which every score is divided by"),
    Metric("eval/gold_sft", "gold", "mean gold reward, on held-out prompts, of the model that PPO started from",
        "gold reward of SFT", "gold, SFT", format="{:.2f}", final="ppo", error=True),
    Metric("eval/gold", "gold", "mean gold reward of the policy on held-out prompts",
        "gold reward of PPO", "gold, PPO", format="{:.2f}",
        final="ppo", better=1, panels=(Panel("ppo", "mean gold reward"),), error=True),
    Metric("eval/gold_sft_std", "gold", "standard deviation of eval/gold_sft over prompts",
        "gold reward of SFT, standard deviation", "gold, SFT, std", format="{:.2f}", final="ppo", detail=2),
    Metric("eval/reward_sft", "reward", "mean score, on held-out prompts, of the model that PPO started from",
        "reward model's score of SFT", "score, SFT", format="{:.2f}", final="ppo", detail=1, error=True),
    Metric("eval/reward", "reward", "mean score of the policy's responses to held-out prompts",
        "reward model's score of PPO", "score, PPO", format="{:.2f}", final="ppo", error=True),
    Metric("eval/kl_sequence", "nats", "KL to the reference on held-out prompts, per response",
        "KL to the reference per response", "KL", format="{:.2f}", final="ppo", error=True),
    Metric("eval/length_sft", "tokens", "mean response length, on held-out prompts, of the model that PPO started from",
        "mean length of SFT", "length, SFT", format="{:.1f}", final="ppo", detail=1, error=True),
    Metric("eval/length", "tokens", "mean response length on held-out prompts",
        "mean length of PPO", "length, PPO", format="{:.1f}", final="ppo", error=True),
    Metric("reward/mean", "reward", "mean score of the rollout, before clipping and penalties",
        "reward model's score of rollouts", "score", format="{:.2f}", panels=(Panel("ppo", "mean score"),)),
    Metric("reward/std", "reward", "standard deviation of reward/mean over responses"),
    Metric("reward/raised", "responses", "responses without end whose score the penalty for it raised instead"),
    Metric("reward/shaped", "reward", "mean score after clipping and penalties"),
    Metric("reward/return", "reward", "mean undiscounted sum of token rewards, KL penalty included"),
    Metric("kl/sequence", "nats", "KL to the reference per response (k1), what the adaptive controller steers",
        "KL to the reference in rollouts", "KL", format="{:.1f}", panels=(Panel("ppo", "nats per response"),)),
    Metric("kl/token", "nats", "KL to the reference per token (k1)"),
    Metric("kl/sequence_k3", "nats", "KL per response by the k3 estimator, which is never negative"),
    Metric("kl/token_k3", "nats", "KL per token by the k3 estimator"),
    Metric("kl/coef", "", "coefficient of the KL penalty"),
    Metric("policy/loss", "", "clipped surrogate loss per token, mean over the rollout's updates"),
    Metric("policy/ptx_loss", "nats", "language-modelling loss per token on ppo.ptx, before its coefficient"),
    Metric("policy/entropy", "nats", "entropy of the token distributions, mean over the rollout's updates"),
    Metric("policy/ratio_first", "", "largest deviation of the ratio from 1 in the first mini-batch"),
    Metric("policy/ratio_max", "", "largest ratio in the rollout's updates"),
    Metric("policy/clip_fraction", "share", "tokens whose ratio was clipped to the worse side"),
    Metric("policy/log_ratio_cut", "tokens", "log-ratios beyond ppo.log_ratio_clip"),
    Metric("policy/approx_kl", "nats", "k3 estimate of KL(old || new) per token, mean over the rollout's updates"),
    Metric("policy/grad_norm", "", "the actor's gradient norm before clipping, mean over the rollout's updates"),
    Metric("policy/overflows", "updates", "updates that both models left out because of the actor's gradient"),
    Metric("value/overflows", "updates", "updates that both models left out because of the critic's gradient"),
    Metric("policy/sampler_gap", "nats", "mean |sampler's - trainer's log-probability| per token"),
    Metric("policy/sampler_gap_max", "nats", "largest |sampler's - trainer's log-probability| of a token"),
    Metric("value/loss", "", "half squared value error per token, mean over the rollout's updates"),
    Metric("value/mean", "reward", "mean value of the rollout's states"),
    Metric("value/clip_fraction", "share", "tokens whose value was clipped to the worse side"),
    Metric("value/explained_variance", "share", "1 - variance of (return - value) / variance of return"),
    Metric("value/grad_norm", "", "the critic's gradient norm before clipping, mean over the rollout's updates"),
    Metric("length/response", "tokens", "mean response length, end-of-text included",
        "response length in rollouts", "length", format="{:.0f}", panels=(Panel("ppo", "tokens"),)),
    Metric("length/prompt", "tokens", "mean prompt length"),
    Metric("length/ended", "share", "responses that reached end-of-text or a stop text"),
    Metric("time/step_s", "s", "wall time of the step", "seconds of a step", "step, s", format="{:.3g}", speed=True),
    Metric("time/rollout_s", "s", "time of the step that sampling responses took"),
    Metric("time/score_s", "s", "time of the step that log-probabilities, reference, values and scores took"),
    Metric("time/train_s", "s", "time of the step that updates took"),
    Metric("time/decode_step_ms", "ms",
        "wall time of a rollout per step of its longest response, reading the prompts included"),
    Metric("time/decode_limit_ms", "ms",
        "time/decode_step_ms if it were what reading weights and cache takes at the copy bandwidth"),
    Metric("time/sft_s", "s", "wall time of a step of supervised fine-tuning, in a benchmark"),
    Metric("time/reward_s", "s", "wall time of a step of reward modelling, in a benchmark"),
    Metric("time/ppo_s", "s", "wall time of a step of PPO, in a benchmark: a rollout, its scoring, its updates"),
    Metric("throughput/samples_per_s", "1/s", "sequences per second, all ranks",
        "sequences per second", "seq/s", format="{:.3g}",
        final="bench", better=1, speed=True, per="time/step_s", panels=(Panel("bench", "sequences per second"),)),
    Metric("throughput/tokens_per_s", "1/s", "real tokens per second, all ranks",
        "tokens per second", "tokens/s", format="{:.3g}", speed=True, per="time/step_s"),
    Metric("throughput/tflops_per_gpu", "TFLOP/s", "operations on real tokens, per device"),
    Metric("throughput/mfu", "share", "operations on real tokens over the device's peak in this number format",
        "MFU", format="{:.1%}", final="bench", better=1, speed=True, per="time/step_s"),
    Metric("throughput/decode_gb_s", "GB/s", "weights and cache that a rollout reads, over its time, per device"),
    Metric("throughput/copy_gb_s", "GB/s",
        "bytes read and bytes written by a large copy in the device's memory, over its time"),
    Metric("throughput/decode_share", "share",
        "throughput/decode_gb_s over throughput/copy_gb_s: how near a rollout is to the memory's limit",
        "decoding, share of bandwidth", "of bandwidth", format="{:.1%}", final="bench", better=1),
)  # fmt: skip


def rates_of(part: str) -> tuple[Metric, ...]:
    """How fast a phase of PPO was, or a stage of a benchmark."""
    phase = part in PHASES
    where = f"of the {part} {'phase' if phase else 'stage'}"
    what = {"score": "scoring", "train": "training"}.get(part, part)
    samples = Metric(
        f"throughput/{part}_samples_per_s", "1/s", f"sequences per second, all ranks, {where}",
        f"{what} sequences per second", f"{what} seq/s", better=1, final="bench",
    )  # fmt: skip
    tokens = Metric(
        f"throughput/{part}_tokens_per_s", "1/s", f"real tokens per second, all ranks, (rollout: sampled ones) {where}",
        f"{what} tokens per second", f"{what} tokens/s", speed=phase, per=f"time/{part}_s",
        panels=(Panel("bench", "tokens per second"),) if phase else (),
    )  # fmt: skip
    flops = Metric(f"throughput/{part}_tflops_per_gpu", "TFLOP/s", f"operations on real tokens, per device, {where}")
    mfu = Metric(
        f"throughput/{part}_mfu", "share", f"share of the device's peak {where}", f"{what} MFU", format="{:.1%}",
        better=1, final="" if phase else "bench",
    )  # fmt: skip
    return samples, tokens, flops, mfu


PARTS = tuple(metric for part in (*PHASES, "sft", "reward", "ppo") for metric in rates_of(part))
MEMORY = Metric(
    "memory/peak_gib", "GiB", "largest memory in use on a device since the start of the stage (CPU: the process)",
    "peak memory in GiB", "peak GiB", better=-1, final="bench", speed=True,
)  # fmt: skip
ERRORS = tuple(
    Metric(f"{metric.name}_se", metric.unit, f"standard error of {metric.name} over held-out prompts")
    for metric in BASE
    if metric.error
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*BASE, *PARTS, MEMORY, *ERRORS)}

# Sequences per second: of what a step is, or of the part of one that is measured.
RATES = (
    "throughput/samples_per_s",
    *(f"throughput/{part}_samples_per_s" for part in ("ppo", "reward", "sft", *PHASES)),
)
# What says most about a stage while it runs: the first of these that it has.
NEWS = ("reward/mean", "eval/accuracy", "train/accuracy", "eval/perplexity", "train/loss", *RATES)
# What the terminal shows of a report: the first of these sets of which any point has a member; of a benchmark its whole
# steps, or its phases or stages.
MEANS = (
    ("eval/gold", "eval/reward", "eval/kl_sequence", "eval/length"),
    ("eval/perplexity", "eval/accuracy"),
    ("throughput/samples_per_s", "throughput/mfu"),
    (*RATES, "throughput/decode_share"),
)
# What a benchmark's variants are compared by, for each `bench.what`.
TIME_OF = {
    "rollout": "time/rollout_s", "score": "time/score_s", "train": "time/train_s", "step3": "time/step_s",
    "stages": "time/step_s",
}  # fmt: skip


def final_metrics(detail: int = 2) -> list[Metric]:
    """The final figures, in the order of the tables, up to a level of detail: 0 for a sweep's table, 1 for a report, 2 for
    the table of one run."""
    return [metric for metric in METRICS.values() if metric.final and metric.detail <= detail]


def check_names(metrics: dict[str, float]) -> None:
    """Refuse a metric that the table does not have."""
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise KeyError(f"metrics without an entry in rlhf/catalog/metric.py: {', '.join(unknown)}")
