"""Stage 2, reward modelling: score the preferred answer above the other one."""

import math
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.losses import preference_loss
from rlhf.algo.schedule import learning_rate
from rlhf.config.derive import Batches, batches, shown_rate
from rlhf.config.schema import Config
from rlhf.data.loaders import all_batches, even_shares, share, steps_per_epoch, total_steps
from rlhf.data.records import Comparison, Dataset, load_dataset, require
from rlhf.data.streams import torch_seed
from rlhf.data.tokens import (
    ComparisonBatch,
    Encoded,
    SequenceBatch,
    Tokenizer,
    comparison_batch,
    encode_comparisons,
    encode_demonstrations,
    right_mask,
    sequence_batch,
)
from rlhf.engine.distributed import is_main, rank, total
from rlhf.engine.save import save_model
from rlhf.engine.step import advance, finish
from rlhf.engine.zero import Learning, backward, release, set_rates, training_engine
from rlhf.models.heads import BIAS, SCALE, last_token, model_inputs
from rlhf.models.load import new_scorer
from rlhf.models.tokenizer import build_tokenizer
from rlhf.plan.flops import training_flops
from rlhf.stages.card import card
from rlhf.stages.context import Context, due, keep_finite
from rlhf.stages.saver import Saver
from rlhf.stages.speed import step_speed
from rlhf.track.nonfinite import Nonfinite
from rlhf.track.progress import Bar
from rlhf.track.throughput import Clock

Element = list[tuple[Encoded, Encoded]]
# Demonstrations whose scores become bias and scale; the least scale, for scores that do not differ.
BIAS_DEMONSTRATIONS, MIN_SCALE = 512, 1e-6


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a reward model on comparisons and save it; returns held-out figures."""
    reward = config.reward
    dataset = load_dataset(config)
    tokenizer = build_tokenizer(config.reward_model, "reward_model", config, dataset)
    train = encode_comparisons(dataset.train.comparisons, tokenizer, config.data, reward.grouped)
    heldout = heldout_pairs(dataset, tokenizer, config)
    plan = batches(config, "reward")
    scorer = new_scorer(config.reward_model, config, tokenizer, config.reward_zero, reward.dropout)
    learning = Learning(
        reward, plan, config.reward_zero, config.reward_lora, reward.learning_rate, reward.weight_decay,
        reward.gradient_checkpointing, "reward_lora",
    )  # fmt: skip
    engine = training_engine(scorer, config, learning)
    nonfinite = Nonfinite(reward.max_nonfinite, context.directory.path / "nonfinite", rank())
    steps = total_steps(len(train), reward.batch_size, reward.epochs, reward.max_steps, "reward.batch_size")
    per_epoch = steps_per_epoch(len(train), reward.batch_size, "reward.batch_size")
    every_batch = enumerate(all_batches(len(train), reward.batch_size, config.seed, "reward.batch_size", steps))
    saver = Saver(context, {"model": engine})
    start = saver.resume()
    final: dict[str, float] = start.numbers.get("final", {})
    nonfinite.row = start.numbers.get("nonfinite", 0)

    with Bar("reward", steps, is_main(), start.step) as bar:
        for number, chosen in islice(every_batch, start.step, None):
            factor = learning_rate(number, steps, 1.0, reward.warmup_steps, reward.schedule)
            set_rates(engine, factor)
            torch.manual_seed(torch_seed(config.seed, "reward dropout", number, rank()))
            clock = Clock()
            with clock.phase("step"):
                own = [train[i] for i in share(chosen, rank(), plan.ranks)]
                measured, lengths = train_step(engine, own, plan, tokenizer.pad_token_id)
            metrics = {
                "lr/model": factor * shown_rate(config.reward_lora, reward.learning_rate),
                "train/epoch": (number + 1) / per_epoch,
            }
            metrics |= keep_finite(nonfinite, number + 1, measured, partial(read, own, tokenizer.pad_token_id), config)
            metrics |= step_speed(config, lengths, work(config, lengths), clock)
            if due(number + 1, steps, reward.eval_every):
                final = evaluate(engine, heldout, dataset.agreement, plan, tokenizer.pad_token_id)
                metrics |= final
            context.tracker.log(number + 1, metrics)
            context.tracker.status(number + 1, steps)
            figures = {"loss": f"{measured['train/loss']:.3f}", "accuracy": f"{measured['train/accuracy']:.2f}"}
            bar.update(number + 1, figures | {"samples/s": f"{metrics['throughput/samples_per_s']:.0f}"})
            saver.boundary(number + 1, None, partial(dict, final=final, nonfinite=nonfinite.row))

    if reward.normalize != "none":
        mean, deviation = moments(engine, dataset, plan, config, tokenizer)
        final["eval/reward_bias"] = mean
        setattr(engine.module.config, BIAS, mean)
        if reward.normalize == "standard":
            final["eval/reward_scale"] = deviation
            setattr(engine.module.config, SCALE, deviation)
    text = card(context.spec, "reward", engine, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.reward_lora, context.directory.model, text)
    release(engine)
    return final


def train_step(engine: Any, elements: list[Element], plan: Batches, pad: int) -> tuple[dict[str, float], list[int]]:
    """One optimiser step on this rank's share of a batch: metrics over all ranks, and the lengths of what was read."""
    engine.train()
    count = float(len(elements) * plan.ranks)
    loss_sum, right, pairs = 0.0, 0.0, 0.0
    lengths: list[int] = []
    for start in range(0, len(elements), plan.micro):
        batch = comparison_batch(elements[start : start + plan.micro], pad, engine.device)
        margins = pair_margins(engine, batch)
        loss = preference_loss(margins, torch.zeros_like(margins), batch.weights)
        backward(engine, loss, count)
        advance(engine)
        loss_sum += float(loss.detach())
        right += float((margins > 0).sum())
        pairs += margins.numel()
        lengths += batch.rows.lengths.tolist()
    (norm,) = finish(engine)
    loss_total, right, pairs = total(loss_sum, right, pairs)
    return {"train/loss": loss_total / count, "train/accuracy": right / pairs, "train/grad_norm": norm}, lengths


def read(elements: list[Element], pad: int) -> SequenceBatch:
    """The answers that a step reads."""
    return comparison_batch(elements, pad).rows


def scores(engine: Any, batch: SequenceBatch) -> Tensor:
    """Raw score of each sequence, at its end-of-text, [B] in float32."""
    outputs: Tensor = engine(**model_inputs(engine, batch.ids, right_mask(batch.lengths, batch.ids.size(1))))
    return last_token(outputs.float(), batch.lengths)


def pair_margins(engine: Any, batch: ComparisonBatch) -> Tensor:
    """Score of the preferred minus the other answer of each pair, [P]."""
    row_scores = scores(engine, batch.rows)
    return row_scores[batch.chosen] - row_scores[batch.rejected]


def heldout_pairs(dataset: Dataset, tokenizer: Tokenizer, config: Config) -> list[tuple[Element, float]]:
    """Held-out comparisons that fit data.max_prompt_tokens, each with its difference of gold rewards."""
    pairs = [(encode_comparisons([c], tokenizer, config.data, False), c) for c in dataset.heldout.comparisons]
    found = [(elements[0], gold_gap(dataset, comparison)) for elements, comparison in pairs if elements]
    return require(found, "comparisons", config)


@torch.no_grad()
def evaluate(
    engine: Any, pairs: list[tuple[Element, float]], ceiling: float | None, plan: Batches, pad: int
) -> dict[str, float]:
    """Loss, accuracy and margin on held-out pairs; against the labels, and against the gold reward where there is one."""
    engine.eval()
    loss = right = margin = agreed = judged = count = 0.0
    for own, on_host in even_shares(pairs, plan, rank()):
        weights = on_host.to(engine.device)
        margins = pair_margins(engine, comparison_batch([element for element, _ in own], pad, engine.device))
        gaps = torch.tensor([gap for _, gap in own], device=engine.device)
        loss += float(preference_loss(margins, torch.zeros_like(margins), weights))
        right += float(((margins > 0) * weights).sum())
        margin += float((margins * weights).sum())
        agreed += float(((margins * gaps > 0) * weights).sum())
        judged += float(((gaps != 0) * weights).sum())
        count += float(weights.sum())
    loss, right, margin, agreed, judged, count = total(loss, right, margin, agreed, judged, count)
    figures = {"eval/loss": loss / count, "eval/accuracy": right / count, "eval/margin": margin / count}
    if ceiling is not None:
        figures |= {"eval/accuracy_ceiling": ceiling, "eval/accuracy_gold": agreed / max(1.0, judged)}
    return figures


def gold_gap(dataset: Dataset, comparison: Comparison) -> float:
    """Gold reward of the preferred minus the other answer; 0 where there is no gold reward."""
    if dataset.gold is None:
        return 0.0
    return dataset.gold(comparison.prompt, comparison.chosen) - dataset.gold(comparison.prompt, comparison.rejected)


@torch.no_grad()
def moments(engine: Any, dataset: Dataset, plan: Batches, config: Config, tokenizer: Tokenizer) -> tuple[float, float]:
    """Mean and standard deviation of the raw scores of training demonstrations: with them as bias and scale, these score 0
    on average, with deviation 1."""
    engine.eval()
    items = encode_demonstrations(dataset.train.demonstrations[:BIAS_DEMONSTRATIONS], tokenizer, config.data)
    score_sum = square_sum = count = 0.0
    for own, on_host in even_shares(items, plan, rank()):
        batch, weights = sequence_batch(own, tokenizer.pad_token_id, engine.device), on_host.to(engine.device)
        found = scores(engine, batch)
        score_sum += float((found * weights).sum())
        square_sum += float((found.double() ** 2 * weights).sum())
        count += float(weights.sum())
    score_sum, square_sum, count = total(score_sum, square_sum, count)
    mean = score_sum / max(1.0, count)
    return mean, max(math.sqrt(max(0.0, square_sum / max(1.0, count) - mean**2)), MIN_SCALE)


def work(config: Config, lengths: list[int]) -> int:
    """Operations of a step on sequences of these lengths."""
    how = config.reward_lora, config.reward.gradient_checkpointing, config.reward.dropout
    return training_flops(config.reward_model, lengths, 0, *how)
