"""Reward modelling."""

from collections.abc import Iterator

from rlhf.catalog.metric import TRAINING, Metric
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Card, Counts, Input, Records, StageKind
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config, Reward
from rlhf.planner.flops import training_flops


def roles(config: Config) -> list[Role]:
    """Return the model that learns."""
    recomputed = config.reward.gradient_checkpointing
    return [Role(config.reward_model, config.reward_zero, config.reward_lora, recomputed=recomputed, scorer=True)]


def count_records(config: Config, counts: Counts) -> Records:
    """Pairs of answers, or all pairs of a prompt together."""
    if config.reward.grouped:
        return Records("prompts with pairs", "pairs", counts.compared_prompts, counts.answers)
    return Records("pairs", "pairs", counts.comparisons, 2)


def work(config: Config, lengths: list[int]) -> int:
    """Operations of a step on sequences of these lengths."""
    how = config.reward_lora, config.reward.gradient_checkpointing, config.reward.dropout
    return training_flops(config.reward_model, lengths, 0, *how)


def phase_flops(config: Config, answers: int) -> dict[str, int]:
    """Operations of a step on records of so many answers, at most."""
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    return {"train": answers * config.reward.batch_size * work(config, [longest])}


def problems(config: Config) -> Iterator[ConfigError]:
    """Find adapters that would lose the bias of the scores, and losses that need their records put together otherwise."""
    reward = config.reward
    for loss, grouped in (("token_wise", False), ("plackett_luce", True)):
        if reward.loss == loss and reward.grouped != grouped:
            wanted = "all pairs of a prompt together" if grouped else "each pair by itself"
            problem = f"it reads {wanted}, and reward.grouped={str(reward.grouped).lower()} does not give it that"
            yield ConfigError("reward.loss", loss, problem, f"set reward.grouped={str(grouped).lower()}")
    if reward.loss != "pairs":
        for key in ("margin_coef", "label_smoothing"):
            if getattr(reward, key) > 0:
                problem = f"reward.loss={reward.loss} does not read it"
                yield ConfigError(f"reward.{key}", getattr(reward, key), problem, "set it 0, or reward.loss=pairs")
    lora = config.reward_lora
    if lora.rank > 0 and not lora.save_merged and config.reward.normalize != "none":
        problem = "the scores' bias is kept in the config.json of the merged model"
        yield ConfigError("reward_lora.save_merged", False, problem, "set it true, or reward.normalize=none")


def more_inputs(config: Config) -> tuple[Input, ...]:
    """Return the data set that another stage makes, where it reads one. It is no lasting need: that stage may start from
    this one's model, in another run."""
    return () if config.reward.data is None else (Input("data", "reward.data", "best_of_n", holds="data"),)


METRICS = (
    Metric("train/loss", "nats", "training loss of the step: per comparison",
        "training loss", "loss", format="{:.3f}", axis="nats per comparison"),
    Metric("train/accuracy", "share",
        "pairs of the step that the reward model orders as the labels do; a tie is half of one", "training accuracy",
        "accuracy", format="{:.2f}", axis="share of pairs"),
    *TRAINING,
    Metric("data/ties", "pairs", "pairs of comparisons whose two responses are the same, which teach and measure nothing"),
    Metric("data/unranked", "prompts", "prompts whose pairs give no one order of their answers, trained by their pairs"),
    Metric("eval/loss", "nats", "held-out loss per pair", error=True),
    Metric("eval/accuracy", "share", "held-out pairs that the reward model orders as the labels do; a tie is half of one",
        "reward model accuracy", "accuracy", format="{:.3f}", final=True, better=1, error=True,
        axis="share of held-out pairs"),
    Metric("eval/accuracy_initial", "share",
        "held-out accuracy of the model that training started from, whose head is random", error=True),
    Metric("eval/accuracy_ceiling", "share", "accuracy of a perfect judge on the held-out labels, noise and all",
        "accuracy that the label noise permits", "accuracy permitted", format="{:.3f}", final=True, detail=1),
    Metric("eval/accuracy_gold", "share",
        "held-out pairs that the reward model orders as the gold reward does, ties left out", error=True),
    Metric("eval/accuracy_longer", "share", "held-out accuracy where the preferred answer has more tokens", error=True),
    Metric("eval/accuracy_shorter", "share", "held-out accuracy where the preferred answer has fewer tokens", error=True),
    Metric("eval/calibration_error", "share",
        "held-out |accuracy - confidence|, mean over pairs in ten bins of confidence: sigmoid of the margin's size"),
    Metric("eval/margin", "reward", "mean score of the preferred minus the other answer, held-out", error=True),
    Metric("eval/reward_bias", "reward", "mean raw score of held-in demonstrations, subtracted from every score"),
    Metric("eval/reward_scale", "reward", "standard deviation of these scores, which every score is divided by"),
)  # fmt: skip

KIND = StageKind(
    name="reward",
    run="rlhf.stages.reward.train:run",
    result_keys=(
        "seed", "reward_model", "precision", "reward_lora", "data", "reward", "reward_zero",
    ),
    schema=Reward,
    section="reward",
    metrics=METRICS,
    headline=("eval/accuracy", "train/accuracy", "train/loss", "throughput/samples_per_s"),
    more_inputs=more_inputs,
    model_keys=("reward_model",),
    loads="reward_model",
    trained=("reward_zero",),
    roles=roles,
    sequences=lambda config: 2,  # a pair has two answers
    records=count_records,
    reads=lambda config: "comparisons",
    share=1,
    phase_flops=phase_flops,
    problems=problems,
    cards={"reward": Card("a reward model trained on comparisons", scorer=True, lora="reward_lora")},
)  # fmt: skip
