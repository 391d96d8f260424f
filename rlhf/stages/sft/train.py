"""Stage 1, supervised fine-tuning: imitate the demonstrations."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.errors import ratio_with_error
from rlhf.algo.masked import masked_sum_rows
from rlhf.config.derive import Batches
from rlhf.config.schema import Config
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import evenly, from_shares
from rlhf.data.records import require_records
from rlhf.data.row_encoder import hash_ids
from rlhf.data.tokenized import DataSource, open_data
from rlhf.data.tokens import SequenceBatch, assistant_mask, response_mask, right_mask, sequence_batch
from rlhf.engine.save import save_model
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, training_engine
from rlhf.models.forward import fill_passes, make_room, micro_batches, target_logprobs
from rlhf.models.load import new_policy
from rlhf.models.tokenizer import build_tokenizer
from rlhf.planner.batches import batches
from rlhf.runtime.distributed import maximum, rank, total, world
from rlhf.stages import supervised
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context, note_data
from rlhf.stages.sft import work
from rlhf.stages.supervised import Learner


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a policy on demonstrations and save it; returns held-out figures."""
    sft = config.sft
    source = DataSource(config, inputs.get("data"))
    tokenizer = build_tokenizer(config.model, "model", DataSource(config))
    turns = sft.loss_on == "assistant"
    train, heldout = (open_data(source, tokenizer, "demonstrations", part, turns=turns) for part in ("train", "heldout"))
    require_records(heldout, "demonstrations", config)
    note_data(context, train, heldout)
    del source
    plan = batches(config, "sft")
    policy = new_policy(config.model, config, tokenizer, config.zero, sft.dropout)
    learning = TrainingSpec(
        sft, plan, config.zero, config.lora, sft.learning_rate, sft.weight_decay, sft.gradient_checkpointing
    )
    engine = training_engine(policy, config, learning)
    learner = Learner(
        "sft", sft, config.lora, plan, engine, train,
        step=lambda own: (train_step(engine, own, plan, config, tokenizer.pad_token_id), sequence_lengths(own)),
        flops=lambda lengths: work(config, lengths),
        sizes=train.sizes,
        batch=lambda own: sequence_batch(own, tokenizer.pad_token_id),
        evaluate=lambda: evaluate(engine, heldout, plan, tokenizer.pad_token_id, sft.packing),
        judged_by="eval/perplexity",
        shown=("train/loss",),
    )  # fmt: skip
    final = supervised.train(config, context, learner)
    final |= train.count_responses(heldout)
    text = write_model_card(context, "sft", engine, tokenizer, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.lora, context.directory.model, text)
    release(engine)
    return final


def train_step(engine: Any, items: list[Encoded], plan: Batches, config: Config, pad: int) -> dict[str, float]:
    """One optimiser step on this rank's share of a batch: loss per token over all ranks, and gradient norm."""
    engine.train()
    tokens = config.sft.micro_batch_tokens
    shared = share_items(engine, items, plan.micro, config.sft.packing, tokens)
    parts = [sequence_batch(part, pad, engine.device) for part in shared]
    (count,) = total(sum(float(loss_mask(part, config).sum()) for part in parts))
    # All ranks make equally many passes, since under ZeRO they make each of them together; those too many count nothing.
    passes = len(parts) if tokens is None or world() == 1 else int(maximum(len(parts)))
    idle = [sequence_batch(shared[-1][-1:], pad, engine.device)] * (passes - len(parts))
    loss_sum = 0.0
    for number, part in enumerate([*parts, *idle], start=1):
        if tokens is not None:
            engine.set_gradient_accumulation_boundary(number == passes)
        loss = loss_of(engine, part, config) * (number <= len(parts))
        backward(engine, loss, count)
        accumulate(engine)
        loss_sum += float(loss.detach())
    (norm,) = optimizer_step(engine)
    (loss_total,) = total(loss_sum)
    return {"train/loss": loss_total / count, "train/grad_norm": norm}


def share_items(
    engine: Any, items: list[Encoded], size: int, packing: str, tokens: int | None = None
) -> list[list[Encoded]]:
    """Share a step's records among forward passes of `size` records at most, or of so many `tokens`; without padding by
    length."""
    order = list(range(len(items)))
    if packing != "none":
        order = sorted(order, key=lambda row: -items[row].length)
    if tokens is not None:
        found = fill_passes(order, sequence_lengths(items), make_room(size, tokens, packing, engine))
        return [[items[row] for row in part] for part in found]
    return [[items[row] for row in part] for part in micro_batches(order, size, packing, engine)]


def loss_mask(batch: SequenceBatch, config: Config) -> Tensor:
    """[B, T - 1] mask of the tokens that are predicted: the response, all that the assistant says, or everything after the
    first token."""
    if config.sft.loss_on == "full":
        return right_mask(batch.lengths, batch.ids.size(1))[:, 1:]
    return (response_mask(batch) if config.sft.loss_on == "completion" else assistant_mask(batch))[:, 1:]


def loss_of(engine: Any, batch: SequenceBatch, config: Config) -> Tensor:
    """Return the summed negative log-likelihood of the tokens that the loss covers, in nats."""
    return row_losses(engine, batch, loss_mask(batch, config), config.sft.packing).sum()


def row_losses(engine: Any, batch: SequenceBatch, mask: Tensor, packing: str) -> Tensor:
    """Return the negative log-likelihood of each sequence's tokens where `mask` [B, T - 1] is 1, [B] in nats."""
    real, targets = right_mask(batch.lengths, batch.ids.size(1)), torch.nn.functional.pad(mask, (1, 0))
    logprobs = target_logprobs(engine, batch.ids, real, targets, packing)  # [B, T]
    return -masked_sum_rows(logprobs[:, 1:], mask)


@torch.no_grad()
def evaluate(engine: Any, items: Sequence[Encoded], plan: Batches, pad: int, packing: str = "packed") -> dict[str, float]:
    """Held-out loss and perplexity per completion token, whatever the training loss covers, and the perplexity's standard
    error over prompts: by the delta method perplexity times that of the loss."""
    engine.eval()
    own: list[tuple[float, float, int]] = []  # loss, tokens, and which items have the same prompt
    for part, _ in evenly(items, plan, rank()):
        batch = sequence_batch(part, pad, engine.device)
        mask = response_mask(batch)[:, 1:]
        groups = [hash_ids(item.prompt) for item in part]
        own += zip(row_losses(engine, batch, mask, packing).tolist(), mask.sum(1).tolist(), groups, strict=True)
    losses, tokens, prompts = zip(*from_shares(own, len(items)), strict=True)
    figures = ratio_with_error("eval/loss", prompts, losses, tokens)
    perplexity = math.exp(min(figures["eval/loss"], 700.0))
    figures["eval/perplexity"] = perplexity
    return figures | ({"eval/perplexity_se": perplexity * figures["eval/loss_se"]} if "eval/loss_se" in figures else {})


def sequence_lengths(items: list[Encoded]) -> list[int]:
    """Return the lengths of prompts with their responses, in tokens."""
    return [item.length for item in items]
