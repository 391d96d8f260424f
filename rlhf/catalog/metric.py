"""A metric: what it is called, its unit, its meaning, and where people are shown it.

Each kind of stage declares its own (`metrics` of rlhf/catalog/stage.py); those that several kinds log are here. What no
kind declares cannot be logged. Logs, result tables, status, reports and documentation read the declarations.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# The parts of a step of PPO.
PHASES = ("rollout", "score", "train")
# Groups whose values depend on the machine; all others depend on the configuration alone.
MACHINE_GROUPS = ("time", "throughput", "memory")


@dataclass(frozen=True)
class Metric:
    """One metric of a kind of stage.

    Attributes:
        name: its name in the logs, as group/name.
        unit: its unit, empty if it has none.
        description: what it measures.
        label: what people read instead of the name, wherever there is room for it.
        short: the label where there is little room, as above a column.
        format: how one value of it is written.
        better: 1 or -1 where more or less of it is better; 0 where that depends on something else, as with the score of a
            reward model that a policy may exploit.
        final: whether it belongs to the stage's result, which people compare.
        detail: 1 for a final metric that the table of a sweep leaves out, 2 for one that reports leave out too.
        axis: the words on the y axis of its plot over the stage's steps; empty if reports have no such plot.
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
    final: bool = False
    detail: int = 0
    axis: str = ""
    speed: bool = False
    per: str = ""
    error: bool = False

    @property
    def heading(self) -> str:
        """The shortest text that people read for it."""
        return self.short or self.label or self.name

    @property
    def title(self) -> str:
        """The label, or without one the name, with a capital letter."""
        text = self.label or self.name
        return text[:1].upper() + text[1:]

    @property
    def unspoken_unit(self) -> str:
        """The unit, where the label does not say it: empty for a share, a reward, a rate and the like."""
        return self.unit if self.unit in ("nats", "tokens") else ""

    def with_unit(self, text: str) -> str:
        """Return a label of this metric, with the unit where the label does not say it."""
        return f"{text}, {self.unspoken_unit}" if self.unspoken_unit else text

    def write(self, value: float) -> str:
        """Return a value as people read it."""
        return self.format.format(value)


def standard_errors(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    """Return the standard errors that come with some metrics."""
    return tuple(
        Metric(f"{metric.name}_se", metric.unit, f"standard error of {metric.name} over held-out prompts")
        for metric in metrics
        if metric.error
    )


# What every kind of stage may log, in the order of tables: how fast its steps are.
SPEED = (
    Metric("time/step_s", "s", "wall time of the step", "seconds of a step", "step, s", format="{:.3g}", speed=True),
    Metric("throughput/samples_per_s", "1/s", "sequences per second, all ranks",
        "sequences per second", "seq/s", format="{:.3g}",
        better=1, speed=True, per="time/step_s"),
    Metric("throughput/tokens_per_s", "1/s", "real tokens per second, all ranks",
        "tokens per second", "tokens/s", format="{:.3g}", speed=True, per="time/step_s"),
    Metric("throughput/tflops_per_gpu", "TFLOP/s", "operations on real tokens, per device"),
    Metric("throughput/mfu", "share", "operations on real tokens over the device's peak in this number format",
        "MFU", format="{:.1%}", better=1, speed=True, per="time/step_s"),
    Metric(
        "memory/peak_gib", "GiB",
        "largest memory in use on a device since the start of the stage (CPU: the process, less libraries)",
        "peak memory in GiB", "peak GiB", better=-1, speed=True,
    ),
)  # fmt: skip
# What a stage measures that evaluates a policy while it trains (rlhf/evaluation/heldout.py), on held-out prompts.
POLICY_EVALUATION = (
    Metric("eval/gold_sft", "gold", "mean gold reward, on held-out prompts, of the model that training started from",
        "gold reward of SFT", "gold, SFT", format="{:.2f}", final=True, error=True),
    Metric("eval/gold", "gold", "mean gold reward of the policy on held-out prompts",
        "gold reward of the policy", "gold, policy", format="{:.2f}",
        final=True, better=1, axis="mean gold reward", error=True),
    Metric("eval/gold_sft_std", "gold", "standard deviation of eval/gold_sft over prompts",
        "gold reward of SFT, standard deviation", "gold, SFT, std", format="{:.2f}", final=True, detail=2),
    Metric("eval/reward_sft", "reward", "mean score, on held-out prompts, of the model that training started from",
        "mean score of SFT", "score, SFT", format="{:.2f}", final=True, detail=1, error=True),
    Metric("eval/reward", "reward", "mean score of the policy's responses to held-out prompts",
        "mean score of the policy", "score, policy", format="{:.2f}", final=True, error=True),
    Metric("eval/win_rate", "share",
        "held-out prompts on which the policy's score is higher than that of the model that training started from; equal "
        "scores count half; by the gold reward where there is no other",
        "win rate against SFT", "win rate", format="{:.0%}", final=True, detail=1, error=True),
    Metric("eval/kl_sequence", "nats", "KL to the reference on held-out prompts, per response",
        "KL to the reference per response", "KL", format="{:.2f}", final=True, error=True),
    Metric("eval/entropy", "nats",
        "entropy of the policy's token distributions, with the sampling temperature, mean over the tokens of a response, "
        "then over held-out prompts",
        "entropy per token", "entropy", format="{:.2f}", final=True, detail=1, error=True),
    Metric("eval/length_sft", "tokens", "mean held-out response length of the model that training started from",
        "mean length of SFT", "length, SFT", format="{:.1f}", final=True, detail=1, error=True),
    Metric("eval/length", "tokens", "mean response length on held-out prompts",
        "mean length of the policy", "length, policy", format="{:.1f}", final=True, error=True),
)  # fmt: skip
# What a stage logs that trains a model on records.
TRAINING = (
    Metric("train/grad_norm", "", "gradient norm before clipping"),
    Metric("train/nonfinite", "steps", "1 if the step was left out because a loss, score or KL was not finite"),
    Metric("train/epoch", "passes", "passes over the training records so far"),
    Metric("lr/model", "", "learning rate of the step"),
    Metric("data/responses", "responses", "different responses that training and evaluation read"),
    Metric("data/responses_cut", "responses", "responses cut at data.max_response_tokens, and so without an end"),
)  # fmt: skip


def rates_of(part: str, where: str, label: str) -> tuple[Metric, ...]:
    """Return the metrics of how fast a part of a stage is, as a phase of PPO or a stage of a benchmark: its sequences,
    tokens and operations per second, and its share of the device's peak."""
    return (
        Metric(f"throughput/{part}_samples_per_s", "1/s", f"sequences per second, all ranks, {where}",
            f"{label} sequences per second", f"{label} seq/s", better=1),
        Metric(f"throughput/{part}_tokens_per_s", "1/s",
            f"real tokens per second, all ranks, (rollout: sampled ones) {where}",
            f"{label} tokens per second", f"{label} tokens/s", per=f"time/{part}_s"),
        Metric(f"throughput/{part}_tflops_per_gpu", "TFLOP/s", f"operations on real tokens, per device, {where}"),
        Metric(f"throughput/{part}_mfu", "share", f"share of the device's peak {where}", f"{label} MFU",
            format="{:.1%}", better=1),
    )  # fmt: skip
