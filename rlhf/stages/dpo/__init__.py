"""Direct preference optimisation and its kin: a policy learns from pairs, without a reward model and without sampling."""

from collections.abc import Mapping

from rlhf.catalog.metric import TRAINING, Metric
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Card, Counts, Input, Records, StageKind
from rlhf.config.schema import Config, Dpo
from rlhf.planner.flops import training_flops

# The losses that compare the policy with the one that it starts from.
WITH_REFERENCE = ("dpo", "cdpo", "robust", "ipo", "hinge", "dpo_norm")


def roles(config: Config) -> list[Role]:
    """Return the model that learns. It is its own reference before its first step, so that no second model is held."""
    return [Role(config.model, config.zero, config.lora, recomputed=config.dpo.gradient_checkpointing)]


def count_records(config: Config, counts: Counts) -> Records:
    """Pairs of answers."""
    return Records("pairs", "pairs", counts.comparisons, 2)


def work(config: Config, lengths: list[int]) -> int:
    """Operations of a step on sequences of these lengths, and of the reading of them before training, by the reference."""
    how = config.lora, config.dpo.gradient_checkpointing, config.dpo.dropout
    return training_flops(config.model, lengths, sum(lengths), *how)


def phase_flops(config: Config, answers: int) -> dict[str, int]:
    """Operations of a step on pairs, at most."""
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    return {"train": answers * config.dpo.batch_size * work(config, [longest])}


def check(config: Config, inputs: Mapping[str, str]) -> None:
    """Look at the policy that is given by path, and at the adapters it may have. Raises ConfigError."""
    from rlhf.models.adapters import check_new_adapters
    from rlhf.models.source import Source

    source = Source(inputs["policy"], "dpo.policy", trust_remote_code=config.model.trust_remote_code)
    check_new_adapters(config, "lora", source)
    if config.dpo.policy is not None:
        from rlhf.models.preflight import check_source  # which imports torch

        check_source(source, config, scorer=False)


METRICS = (
    Metric("train/loss", "nats", "training loss of the step: per pair",
        "training loss", "loss", format="{:.3f}", axis="nats per pair"),
    Metric("train/accuracy", "share",
        "pairs of the step whose chosen response has the higher implicit reward; a tie is half of one",
        "training accuracy", "pair accuracy", format="{:.2f}", axis="share of pairs"),
    *TRAINING,
    Metric("train/reward_chosen", "", "implicit reward of the step's chosen responses"),
    Metric("train/reward_rejected", "", "implicit reward of the step's rejected responses"),
    Metric("train/logp_chosen", "nats", "log-probability of the step's chosen responses"),
    Metric("train/logp_rejected", "nats", "log-probability of the step's rejected responses"),
    Metric("data/ties", "pairs", "pairs whose two responses are the same, which teach and measure nothing"),
    Metric("eval/loss", "nats", "held-out loss per pair", error=True),
    Metric("eval/accuracy", "share",
        "held-out pairs whose chosen response has the higher implicit reward; a tie is half of one",
        "accuracy of the implicit reward", "pair accuracy", format="{:.3f}", final=True, better=1, error=True),
    Metric("eval/accuracy_initial", "share", "eval/accuracy of the model that training started from: 1/2 of the reference",
        error=True),
    Metric("eval/margin", "", "mean implicit reward of the chosen minus the rejected response, held-out",
        "margin of the implicit reward", "margin", format="{:.3f}", final=True, detail=1, error=True),
    Metric("eval/logp_chosen", "nats", "mean log-probability of held-out chosen responses"),
    Metric("eval/logp_rejected", "nats", "mean log-probability of held-out rejected responses"),
)  # fmt: skip

KIND = StageKind(
    name="dpo",
    run="rlhf.stages.dpo.train:run",
    result_keys=("seed", "precision", "lora", "data", "dpo", "zero"),
    schema=Dpo,
    section="dpo",
    metrics=METRICS,
    headline=("eval/accuracy", "train/accuracy", "train/loss", "throughput/samples_per_s"),
    inputs=(Input("policy", "dpo.policy", "sft"),),
    model_keys=("model",),
    trained=("zero",),
    roles=roles,
    sequences=2,  # a pair has two answers
    records=count_records,
    reads="comparisons",
    share=1,  # as in DeepSpeed-Chat, whose DPO takes the place of its step 2
    phase_flops=phase_flops,
    check=check,
    cards={"dpo": Card("a language model trained on preferences, without a reward model")},
)  # fmt: skip
