"""Stage 2, reward modelling: score the preferred answer above the other one."""

import math
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.errors import ratio_with_error
from rlhf.algo.losses import preference_loss
from rlhf.config.derive import Batches
from rlhf.config.schema import Config
from rlhf.data.dataset import Comparison, Dataset
from rlhf.data.encode import encode_comparisons, encode_demonstrations, encode_pairs
from rlhf.data.loaders import evenly, from_shares
from rlhf.data.records import load_dataset, require_records
from rlhf.data.templates import Template, build_template
from rlhf.data.tokens import SequenceBatch, comparison_batch, count_truncated, sequence_batch
from rlhf.engine.save import save_model
from rlhf.engine.step import optimizer_step
from rlhf.engine.zero import TrainingSpec, release, training_engine
from rlhf.models.heads import BIAS, SCALE
from rlhf.models.load import new_scorer
from rlhf.models.tokenizer import build_tokenizer
from rlhf.planner.batches import batches
from rlhf.runtime.distributed import is_main, rank, total
from rlhf.stages import supervised
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context
from rlhf.stages.reward import answers_per_pass, work
from rlhf.stages.reward.comparisons import Element, count_tokens, pair_margins, read_scores, train_on_comparisons
from rlhf.stages.supervised import Learner
from rlhf.tracking.progress import Bar

# Demonstrations whose scores become bias and scale; the least scale, for scores that do not differ.
BIAS_DEMONSTRATIONS, MIN_SCALE = 512, 1e-6


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a reward model on comparisons and save it; returns held-out figures."""
    reward = config.reward
    dataset = load_dataset(config)
    tokenizer = build_tokenizer(config.reward_model, "reward_model", config, dataset)
    pad = tokenizer.pad_token_id
    template = build_template(config.data, tokenizer)
    train = encode_comparisons(dataset.train.comparisons, template, reward.grouped)
    heldout = heldout_pairs(dataset, template, config)
    counts = describe_pairs(train, [element for element, _ in heldout])
    plan = batches(config, "reward")
    scorer = new_scorer(config.reward_model, config, tokenizer, config.reward_zero, reward.dropout)
    learning = TrainingSpec(
        reward, plan, config.reward_zero, config.reward_lora, reward.learning_rate, reward.weight_decay,
        reward.gradient_checkpointing, "reward_lora",
    )  # fmt: skip
    engine = training_engine(scorer, config, learning)
    learner = Learner(
        "reward", reward, config.reward_lora, plan, engine, train,
        step=lambda own: train_step(engine, own, plan.ranks, answers_per_pass(config), pad, reward.packing),
        flops=lambda lengths: work(config, lengths),
        size=count_tokens,
        batch=lambda own: join_pairs(own, pad),
        evaluate=lambda: evaluate(engine, heldout, dataset.agreement, plan, pad, reward.packing),
        judged_by="eval/accuracy",
        shown=("train/loss", "train/accuracy"),
    )  # fmt: skip
    final = supervised.train(config, context, learner)
    final |= counts | normalize_scores(engine, dataset, plan, config, template)
    text = write_model_card(context.spec, "reward", engine, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.reward_lora, context.directory.model, text)
    release(engine)
    return final


def train_step(
    engine: Any, elements: list[Element], ranks: int, answers: int, pad: int, packing: str = "packed"
) -> tuple[dict[str, float], list[int]]:
    """One optimiser step on this rank's share of a batch, at most `answers` answers at a time: metrics over all ranks, and
    the lengths of what was read."""
    engine.train()
    count = float(len(elements) * ranks)
    found = train_on_comparisons(engine, elements, answers, count, pad, packing)
    (norm,) = optimizer_step(engine)
    loss, right, pairs = total(found.loss, float(fraction_correct(found.margins).sum()), found.margins.numel())
    return {"train/loss": loss / count, "train/accuracy": right / pairs, "train/grad_norm": norm}, found.lengths


def fraction_correct(margins: Tensor) -> Tensor:
    """1 for each pair whose preferred answer scores higher, 1/2 for a tie, else 0; [P]."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def join_pairs(elements: list[Element], pad: int) -> SequenceBatch:
    """Return the answers that a step reads."""
    return comparison_batch(elements, pad).rows


def describe_pairs(train: list[Element], heldout: list[Element]) -> dict[str, float]:
    """Metrics of the data: how many different responses, how many of them were cut, how many pairs are ties."""
    ties = count_ties(train, "training") + count_ties(heldout, "held-out")
    answers = (answer for element in train + heldout for pair in element for answer in pair)
    return count_truncated(answers) | {"data/ties": float(ties)}


def count_ties(elements: list[Element], where: str) -> int:
    """How many pairs have the same response twice, as data.max_response_tokens may make them; said where there are any."""
    pairs = [pair for element in elements for pair in element]
    ties = sum(chosen.response == rejected.response for chosen, rejected in pairs)
    if ties and is_main():
        print(
            f"{ties} of {len(pairs)} {where} comparisons have the same response as chosen and as rejected: they "
            "teach and measure nothing",
            flush=True,
        )
    return ties


def heldout_pairs(dataset: Dataset, template: Template, config: Config) -> list[tuple[Element, float]]:
    """Return held-out comparisons that fit data.max_prompt_tokens, each with its difference of gold rewards."""
    records = dataset.heldout.comparisons
    found = [([pair], gold_gap(dataset, records[number])) for number, pair in encode_pairs(records, template)]
    return require_records(found, "comparisons", config)


@torch.no_grad()
def evaluate(
    engine: Any, pairs: list[tuple[Element, float]], ceiling: float | None, plan: Batches, pad: int, packing: str = "packed"
) -> dict[str, float]:
    """Loss, accuracy and margin on held-out pairs, against the labels, and against the gold reward where there is one; with
    standard errors over prompts."""
    engine.eval()
    own: list[tuple[float, float]] = []  # loss and margin of each pair
    for part, _ in evenly(pairs, plan, rank()):
        batch = comparison_batch([element for element, _ in part], pad, engine.device)
        margins = pair_margins(read_scores(engine, batch.rows, packing), batch)
        losses = [float(preference_loss(m, torch.zeros_like(m), w)) for m, w in zip(margins, batch.weights, strict=True)]
        own += zip(losses, margins.tolist(), strict=True)
    every = from_shares(own, len(pairs))
    margins, gaps = torch.tensor([margin for _, margin in every]), torch.tensor([gap for _, gap in pairs])
    prompts, ones = [tuple(element[0][0].prompt) for element, _ in pairs], [1.0] * len(pairs)
    figures = ratio_with_error("eval/loss", prompts, [loss for loss, _ in every], ones)
    figures |= ratio_with_error("eval/accuracy", prompts, fraction_correct(margins).tolist(), ones)
    figures |= ratio_with_error("eval/margin", prompts, margins.tolist(), ones)
    if ceiling is not None:
        judged = (gaps != 0).float()
        agreed = fraction_correct(margins * gaps.sign()) * judged
        figures |= {"eval/accuracy_ceiling": ceiling}
        if judged.any():
            figures |= ratio_with_error("eval/accuracy_gold", prompts, agreed.tolist(), judged.tolist())
    return figures


def gold_gap(dataset: Dataset, comparison: Comparison) -> float:
    """Gold reward of the preferred minus the other answer; 0 where there is no gold reward."""
    if dataset.gold is None:
        return 0.0
    return dataset.gold(comparison.prompt, comparison.chosen) - dataset.gold(comparison.prompt, comparison.rejected)


def normalize_scores(engine: Any, dataset: Dataset, plan: Batches, config: Config, template: Template) -> dict[str, float]:
    """Note in the model's configuration what its scores are shifted and divided by (`reward.normalize`); metrics of it."""
    if config.reward.normalize == "none":
        return {}
    mean, deviation = score_moments(engine, dataset, plan, config, template)
    setattr(engine.module.config, BIAS, mean)
    if config.reward.normalize == "bias":
        return {"eval/reward_bias": mean}
    setattr(engine.module.config, SCALE, deviation)
    return {"eval/reward_bias": mean, "eval/reward_scale": deviation}


@torch.no_grad()
def score_moments(engine: Any, dataset: Dataset, plan: Batches, config: Config, template: Template) -> tuple[float, float]:
    """Mean and standard deviation of the raw scores of training demonstrations: with them as bias and scale, these score 0
    on average, with deviation 1."""
    engine.eval()
    items = encode_demonstrations(dataset.train.demonstrations[:BIAS_DEMONSTRATIONS], template)
    score_sum = square_sum = count = 0.0
    shares = evenly(items, plan, rank())
    with Bar("bias", len(shares), is_main()) as bar:
        for number, (own, on_host) in enumerate(shares, start=1):
            batch, weights = sequence_batch(own, template.tokenizer.pad_token_id, engine.device), on_host.to(engine.device)
            found = read_scores(engine, batch, config.reward.packing)
            score_sum += float((found * weights).sum())
            square_sum += float((found.double() ** 2 * weights).sum())
            count += float(weights.sum())
            bar.update(number, {"scoring": f"{len(items)} demonstrations"})
    score_sum, square_sum, count = total(score_sum, square_sum, count)
    mean = score_sum / max(1.0, count)
    return mean, max(math.sqrt(max(0.0, square_sum / max(1.0, count) - mean**2)), MIN_SCALE)
