"""Supervised fine-tuning."""

from rlhf.catalog.stage import Card, Counts, Records, StageKind
from rlhf.config.keys import QUANTIZED
from rlhf.config.memory import Role
from rlhf.config.schema import Config
from rlhf.planner.flops import training_flops


def roles(config: Config) -> list[Role]:
    """The model that learns."""
    return [Role(config.model, config.zero, config.lora, recomputed=config.sft.gradient_checkpointing)]


def count_records(config: Config, counts: Counts) -> Records:
    """Demonstrations."""
    return Records("demonstrations", "demonstrations", counts.demonstrations)


def work(config: Config, lengths: list[int]) -> int:
    """Operations of a step on sequences of these lengths."""
    how = config.lora, config.sft.gradient_checkpointing, config.sft.dropout
    return training_flops(config.model, lengths, sum(lengths), *how)


def step_flops(config: Config, answers: int) -> int:
    """Operations of a step, at most."""
    return work(config, [config.data.max_prompt_tokens + config.data.max_response_tokens] * config.sft.batch_size)


KIND = StageKind(
    name="sft",
    run="rlhf.stages.sft.train:run",
    result_keys=("seed", "model", "precision", "lora", "data", "sft", *(f"zero.{key}" for key in QUANTIZED)),
    section="sft",
    model_keys=("model",),
    loads="model",
    trained=("zero",),
    roles=roles,
    records=count_records,
    step_flops=step_flops,
    cards={"sft": Card("a language model fine-tuned on demonstrations")},
)
