"""Stage 2, reward modelling: score the preferred answer above the other one."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.errors import ratio_with_error
from rlhf.algo.preferences import pair_loss
from rlhf.config.derive import Batches
from rlhf.config.errors import ConfigError
from rlhf.config.rewards import reward_seed
from rlhf.config.schema import Config, Reward
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import even_shares, evenly, from_shares
from rlhf.data.records import require_records
from rlhf.data.tokenized import Comparisons, DataSource, open_data
from rlhf.data.tokens import SequenceBatch, comparison_batch, sequence_batch
from rlhf.engine.save import save_model
from rlhf.engine.step import optimizer_step
from rlhf.engine.zero import TrainingSpec, release, training_engine
from rlhf.evaluation.reward.statistics import calibration_error
from rlhf.models.heads import BIAS, SCALE
from rlhf.models.load import new_scorer
from rlhf.models.tokenizer import build_tokenizer
from rlhf.planner.batches import answers_per_pass, batches
from rlhf.runtime.distributed import is_main, rank, total
from rlhf.stages import supervised
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context, note_data
from rlhf.stages.reward import work
from rlhf.stages.reward.comparisons import (
    PAIRS,
    Element,
    Objective,
    order_answers,
    pair_margins,
    read_scores,
    train_on_comparisons,
)
from rlhf.stages.supervised import Learner
from rlhf.tracking.progress import Bar

# Demonstrations whose scores become bias and scale; the least scale, for scores that do not differ.
BIAS_DEMONSTRATIONS, MIN_SCALE = 512, 1e-6


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a reward model on comparisons and save it; returns held-out figures."""
    reward = config.reward
    source = DataSource(config, inputs.get("data"))
    tokenizer = build_tokenizer(config.reward_model, "reward_model", DataSource(config))
    pad = tokenizer.pad_token_id
    train = open_data(source, tokenizer, "comparisons", "train", reward.grouped)
    heldout = open_data(source, tokenizer, "comparisons", "heldout")
    require_records(heldout, "comparisons", config)
    shown = None if reward.normalize == "none" else open_data(
        source, tokenizer, "demonstrations", "train", first=BIAS_DEMONSTRATIONS
    )  # fmt: skip
    note_data(context, train, heldout)
    del source
    config = replace(config, seed=reward_seed(config))  # of all that is drawn but the data
    counts = describe_pairs(train, heldout) | describe_objective(train, reward)
    objective = Objective(reward.loss, reward.margin_coef, reward.label_smoothing, reward.center_coef)
    plan, answers = batches(config, "reward"), answers_per_pass(config, "reward")
    scorer = new_scorer(config.reward_model, config, tokenizer, config.reward_zero, reward.dropout)
    learning = TrainingSpec(
        reward, plan, config.reward_zero, config.reward_lora, reward.learning_rate, reward.weight_decay,
        reward.gradient_checkpointing, "reward_lora",
    )  # fmt: skip
    engine = training_engine(scorer, config, learning)
    learner = Learner(
        "reward", reward, config.reward_lora, plan, engine, train,
        step=lambda own: train_step(
            engine, own, plan.ranks, answers, pad, reward.packing, objective, reward.micro_batch_tokens
        ),
        flops=lambda lengths: work(config, lengths),
        sizes=train.sizes,
        batch=lambda own: join_pairs(own, pad),
        evaluate=lambda: evaluate(engine, heldout, heldout.info["agreement"], plan, pad, reward.packing),
        judged_by="eval/accuracy",
        shown=("train/loss", "train/accuracy"),
    )  # fmt: skip
    final = supervised.train(config, context, learner)
    final |= counts | ({} if shown is None else normalize_scores(engine, shown, plan, config, pad))
    text = write_model_card(context, "reward", engine, tokenizer, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.reward_lora, context.directory.model, text)
    release(engine)
    return final


def train_step(
    engine: Any,
    elements: list[Element],
    ranks: int,
    answers: int,
    pad: int,
    packing: str = "packed",
    objective: Objective = PAIRS,
    tokens: int | None = None,
) -> tuple[dict[str, float], list[int]]:
    """One optimiser step on this rank's share of a batch, at most `answers` answers, or so many `tokens`, at a time:
    metrics over all ranks, and the lengths of what was read."""
    engine.train()
    count = float(len(elements) * ranks)
    found = train_on_comparisons(engine, elements, answers, count, pad, packing, objective, tokens)
    (norm,) = optimizer_step(engine)
    loss, right, pairs = total(found.loss, float(fraction_correct(found.margins).sum()), found.margins.numel())
    return {"train/loss": loss / count, "train/accuracy": right / pairs, "train/grad_norm": norm}, found.lengths


def fraction_correct(margins: Tensor) -> Tensor:
    """1 for each pair whose preferred answer scores higher, 1/2 for a tie, else 0; [P]."""
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def join_pairs(elements: list[Element], pad: int) -> SequenceBatch:
    """Return the answers that a step reads."""
    return comparison_batch(elements, pad).rows


def describe_pairs(train: Comparisons, heldout: Comparisons) -> dict[str, float]:
    """Metrics of the data: how many different responses, how many of them were cut, how many pairs are ties: they have the
    same response twice, as data.max_response_tokens may make them. Says so where there are any."""
    for pairs, where in ((train.counted, "training"), (heldout.counted, "held-out")):
        if pairs.ties and is_main():
            print(
                f"{pairs.ties} of {pairs.kept} {where} comparisons have the same response as chosen and as rejected: they "
                "teach and measure nothing",
                flush=True,
            )
    return train.count_responses(heldout) | {"data/ties": float(train.counted.ties + heldout.counted.ties)}


def describe_objective(train: Comparisons, reward: Reward) -> dict[str, float]:
    """Metrics of what the loss needs of the data: the prompts whose pairs give no one order. Raises ConfigError where no
    record has the margin that is asked for."""
    if reward.margin_coef > 0 and not train.margins.any():
        fix = "give the records a column `margin`, or score_chosen and score_rejected; or set it 0"
        raise ConfigError("reward.margin_coef", reward.margin_coef, "no training record says a margin", fix)
    if reward.loss != "plackett_luce":
        return {}
    pairs = ([(tuple(c.response), tuple(r.response)) for c, r in train.read(number)] for number in range(len(train)))
    return {"data/unranked": float(sum(not order_answers(found) for found in pairs))}


@torch.no_grad()
def evaluate(
    engine: Any, pairs: Comparisons, ceiling: float | None, plan: Batches, pad: int, packing: str = "packed"
) -> dict[str, float]:
    """Loss, accuracy and margin on held-out pairs, against the labels, and against the gold reward where there is one, with
    standard errors over prompts; accuracy by which answer is longer; and the calibration error."""
    engine.eval()
    own: list[tuple[float, float, float]] = []  # of each pair: loss, margin, and the preferred answer's tokens more
    for part, _ in evenly(pairs, plan, rank()):
        batch = comparison_batch(part, pad, engine.device)
        margins = pair_margins(read_scores(engine, batch.rows, packing), batch)
        losses = [float(pair_loss(m, torch.zeros_like(m), w)) for m, w in zip(margins, batch.weights, strict=True)]
        more = batch.rows.lengths[batch.chosen] - batch.rows.lengths[batch.rejected]
        own += zip(losses, margins.tolist(), more.tolist(), strict=True)
    every = from_shares(own, len(pairs))
    margins, gaps = torch.tensor([margin for _, margin, _ in every]), torch.tensor(pairs.gaps().tolist())
    more = torch.tensor([tokens for _, _, tokens in every])
    prompts, ones = pairs.groups.tolist(), [1.0] * len(pairs)
    figures = ratio_with_error("eval/loss", prompts, [loss for loss, _, _ in every], ones)
    figures |= ratio_with_error("eval/accuracy", prompts, fraction_correct(margins).tolist(), ones)
    figures |= ratio_with_error("eval/margin", prompts, margins.tolist(), ones)
    figures |= {"eval/calibration_error": calibration_error(margins.double().numpy())}
    by_length = {"eval/accuracy_longer": (more > 0).float(), "eval/accuracy_shorter": (more < 0).float()}
    for name, asked in by_length.items():
        if asked.any():
            right = fraction_correct(margins) * asked
            figures |= ratio_with_error(name, prompts, right.tolist(), asked.tolist())
    if ceiling is not None:
        judged = (gaps != 0).float()
        agreed = fraction_correct(margins * gaps.sign()) * judged
        figures |= {"eval/accuracy_ceiling": ceiling}
        if judged.any():
            figures |= ratio_with_error("eval/accuracy_gold", prompts, agreed.tolist(), judged.tolist())
    return figures


def normalize_scores(engine: Any, items: Sequence[Encoded], plan: Batches, config: Config, pad: int) -> dict[str, float]:
    """Note in the model's configuration what its scores are shifted and divided by (`reward.normalize`), from those of
    training demonstrations; metrics of it."""
    mean, deviation = score_moments(engine, items, plan, config, pad)
    setattr(engine.module.config, BIAS, mean)
    if config.reward.normalize == "bias":
        return {"eval/reward_bias": mean}
    setattr(engine.module.config, SCALE, deviation)
    return {"eval/reward_bias": mean, "eval/reward_scale": deviation}


@torch.no_grad()
def score_moments(engine: Any, items: Sequence[Encoded], plan: Batches, config: Config, pad: int) -> tuple[float, float]:
    """Mean and standard deviation of the raw scores of training demonstrations: with them as bias and scale, these score 0
    on average, with deviation 1."""
    engine.eval()
    score_sum = square_sum = count = 0.0
    shares = len(even_shares(len(items), plan, rank()))
    with Bar("bias", shares, is_main()) as bar:
        for number, (own, on_host) in enumerate(evenly(items, plan, rank()), start=1):
            batch, weights = sequence_batch(own, pad, engine.device), on_host.to(engine.device)
            found = read_scores(engine, batch, config.reward.packing)
            score_sum += float((found * weights).sum())
            square_sum += float((found.double() ** 2 * weights).sum())
            count += float(weights.sum())
            bar.update(number, {"scoring": f"{len(items)} demonstrations"})
    score_sum, square_sum, count = total(score_sum, square_sum, count)
    mean = score_sum / max(1.0, count)
    return mean, max(math.sqrt(max(0.0, square_sum / max(1.0, count) - mean**2)), MIN_SCALE)
