"""Supervised fine-tuning."""

from rlhf.catalog.metric import TRAINING, Metric
from rlhf.catalog.role import Role
from rlhf.catalog.stage import Card, Counts, Input, Records, StageKind
from rlhf.config.schema import Config, Sft
from rlhf.planner.flops import training_flops


def roles(config: Config) -> list[Role]:
    """Return the model that learns."""
    return [Role(config.model, config.zero, config.lora, recomputed=config.sft.gradient_checkpointing)]


def count_records(config: Config, counts: Counts) -> Records:
    """Demonstrations."""
    return Records("demonstrations", "demonstrations", counts.demonstrations)


def work(config: Config, lengths: list[int]) -> int:
    """Operations of a step on sequences of these lengths."""
    how = config.lora, config.sft.gradient_checkpointing, config.sft.dropout
    return training_flops(config.model, lengths, sum(lengths), *how)


def phase_flops(config: Config, answers: int) -> dict[str, int]:
    """Operations of a step, at most."""
    longest = config.data.max_prompt_tokens + config.data.max_response_tokens
    return {"train": config.sft.batch_size * work(config, [longest])}


def more_inputs(config: Config) -> tuple[Input, ...]:
    """Return the data set that another stage makes, where it reads one. It is no lasting need: that stage may start from
    this one's model, in another run."""
    return () if config.sft.data is None else (Input("data", "sft.data", "best_of_n", holds="data"),)


METRICS = (
    Metric("train/loss", "nats", "training loss of the step: per token",
        "training loss", "loss", format="{:.3f}", axis="nats per token"),
    *TRAINING,
    Metric("eval/loss", "nats", "held-out loss per completion token", error=True),
    Metric("eval/perplexity_initial", "",
        "exp of the held-out loss per completion token of the model that training started from", "perplexity before SFT",
        format="{:.4g}", final=True, detail=2, error=True),
    Metric("eval/perplexity", "", "exp of the held-out loss per completion token",
        "SFT perplexity", "perplexity", format="{:.2f}", final=True, better=-1, error=True),
)  # fmt: skip

KIND = StageKind(
    name="sft",
    run="rlhf.stages.sft.train:run",
    result_keys=("seed", "model", "precision", "lora", "data", "sft", "zero"),
    schema=Sft,
    section="sft",
    metrics=METRICS,
    headline=("eval/perplexity", "train/loss", "throughput/samples_per_s"),
    more_inputs=more_inputs,
    model_keys=("model",),
    loads="model",
    trained=("zero",),
    roles=roles,
    records=count_records,
    reads=lambda config: "demonstrations",
    share=0,
    phase_flops=phase_flops,
    cards={"sft": Card("a language model fine-tuned on demonstrations")},
)
