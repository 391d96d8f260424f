"""Stage 2, reward modelling: score the preferred answer above the other one."""

import math
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.losses import preference_loss
from rlhf.algo.schedule import learning_rate
from rlhf.config.derive import Batches, batches
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
from rlhf.engine.zero import backward, release, set_learning_rate, step, training_engine
from rlhf.models.heads import BIAS, last_token, model_inputs
from rlhf.models.load import new_scorer
from rlhf.models.tokenizer import build_tokenizer
from rlhf.plan.flops import forward_flops
from rlhf.stages.context import Context, due
from rlhf.stages.speed import step_speed
from rlhf.track.progress import Bar
from rlhf.track.throughput import Clock

Element = list[tuple[Encoded, Encoded]]
# Demonstrations whose mean score becomes the bias.
BIAS_DEMONSTRATIONS = 512


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a reward model on comparisons and save it; returns held-out figures."""
    reward = config.reward
    dataset = load_dataset(config)
    tokenizer = build_tokenizer(config.reward_model, "reward_model", config, dataset)
    train = encode_comparisons(dataset.train.comparisons, tokenizer, config.data, reward.grouped)
    heldout = heldout_pairs(dataset, tokenizer, config)
    plan = batches(config, "reward")
    scorer = new_scorer(config.reward_model, config, tokenizer, reward.dropout)
    engine = training_engine(scorer, config, reward, plan, reward.weight_decay)
    steps = total_steps(len(train), reward.batch_size, reward.epochs, reward.max_steps, "reward.batch_size")
    per_epoch = steps_per_epoch(len(train), reward.batch_size, "reward.batch_size")
    final: dict[str, float] = {}

    with Bar("reward", steps, is_main()) as bar:
        for number, chosen in enumerate(
            all_batches(len(train), reward.batch_size, config.seed, "reward.batch_size", steps)
        ):
            rate = learning_rate(number, steps, reward.learning_rate, reward.warmup_steps, reward.schedule)
            set_learning_rate(engine, rate)
            torch.manual_seed(torch_seed(config.seed, "reward dropout", number, rank()))
            clock = Clock()
            with clock.phase("step"):
                own = [train[i] for i in share(chosen, rank(), plan.ranks)]
                measured, lengths = train_step(engine, own, plan, tokenizer.pad_token_id)
            metrics = {**measured, "lr/model": rate, "train/epoch": (number + 1) / per_epoch}
            forward = forward_flops(config.reward_model, lengths, 0)
            metrics |= step_speed(config, lengths, forward, reward.gradient_checkpointing, clock)
            if due(number + 1, steps, reward.eval_every):
                final = evaluate(engine, heldout, dataset.agreement, plan, tokenizer.pad_token_id)
                metrics |= final
            context.tracker.log(number + 1, metrics)
            context.tracker.status(number + 1, steps)
            figures = {"loss": f"{measured['train/loss']:.3f}", "accuracy": f"{measured['train/accuracy']:.2f}"}
            bar.update(number + 1, figures | {"samples/s": f"{metrics['throughput/samples_per_s']:.0f}"})

    if reward.normalize == "bias":
        final["eval/reward_bias"] = bias(engine, dataset, plan, config, tokenizer)
        setattr(engine.module.config, BIAS, final["eval/reward_bias"])
    save_model(engine, tokenizer, config, context.directory.model)
    release(engine)
    return final


def train_step(engine: Any, elements: list[Element], plan: Batches, pad: int) -> tuple[dict[str, float], list[int]]:
    """One optimiser step on this rank's share of a batch: metrics over all ranks, and the lengths of what was read."""
    engine.train()
    count = float(len(elements) * plan.ranks)
    loss_sum, right, pairs, norm = 0.0, 0.0, 0.0, math.nan
    lengths: list[int] = []
    for start in range(0, len(elements), plan.micro):
        batch = comparison_batch(elements[start : start + plan.micro], pad, engine.device)
        margins = pair_margins(engine, batch)
        loss = preference_loss(margins, torch.zeros_like(margins), batch.weights)
        backward(engine, loss, count, plan)
        ended = step(engine)
        norm = norm if ended is None else ended
        loss_sum += float(loss.detach())
        right += float((margins > 0).sum())
        pairs += margins.numel()
        lengths += batch.rows.lengths.tolist()
    loss_total, right, pairs = total(loss_sum, right, pairs)
    return {"train/loss": loss_total / count, "train/accuracy": right / pairs, "train/grad_norm": norm}, lengths


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
def bias(engine: Any, dataset: Dataset, plan: Batches, config: Config, tokenizer: Tokenizer) -> float:
    """Mean raw score of training demonstrations: what is subtracted so that they score 0 on average."""
    engine.eval()
    items = encode_demonstrations(dataset.train.demonstrations[:BIAS_DEMONSTRATIONS], tokenizer, config.data)
    score_sum = count = 0.0
    for own, weights in even_shares(items, plan, rank()):
        batch = sequence_batch(own, tokenizer.pad_token_id, engine.device)
        score_sum += float((scores(engine, batch) * weights.to(engine.device)).sum())
        count += float(weights.sum())
    score_sum, count = total(score_sum, count)
    return score_sum / max(1.0, count)
