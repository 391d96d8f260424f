"""Training on pairs: the policy's own log-probabilities are the rewards that are compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.dpo import Pairs, implicit_rewards, pair_losses
from rlhf.algo.errors import ratio_with_error
from rlhf.algo.masked import zero_padding
from rlhf.config.derive import Batches
from rlhf.config.schema import Config, Dpo
from rlhf.data.dataset import Comparison
from rlhf.data.encode import encode_pairs
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import all_batches, evenly, from_shares, total_steps
from rlhf.data.records import load_dataset, require_records
from rlhf.data.templates import Template, build_template
from rlhf.data.tokens import ComparisonBatch, comparison_batch, response_mask, right_mask
from rlhf.engine.save import save_model
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, training_engine
from rlhf.models.forward import micro_batches, target_logprobs
from rlhf.models.load import load_policy
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.planner.batches import batches
from rlhf.runtime.distributed import is_main, rank, total
from rlhf.stages import supervised
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context
from rlhf.stages.dpo import WITH_REFERENCE, answers_per_pass, work
from rlhf.stages.dpo.reference import ReferenceFile
from rlhf.stages.reward.train import describe_pairs, fraction_correct
from rlhf.stages.supervised import Learner
from rlhf.tracking.progress import Bar


@dataclass(frozen=True)
class Pair:
    """The chosen and the rejected response to a prompt, and their log-probabilities, in nats, under the reference."""

    chosen: Encoded
    rejected: Encoded
    reference: tuple[float, float] = (0.0, 0.0)

    @property
    def length(self) -> int:
        """The tokens of both responses, each with its prompt."""
        return self.chosen.length + self.rejected.length


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a policy on pairs and save it; returns held-out metrics."""
    dpo, dataset = config.dpo, load_dataset(config)
    tokenizer = load_tokenizer(inputs["policy"], "dpo.policy", None, config.model.trust_remote_code)
    pad = tokenizer.pad_token_id
    template = build_template(config.data, tokenizer)
    train, heldout = (encode(part.comparisons, template) for part in (dataset.train, dataset.heldout))
    require_records(heldout, "comparisons", config)
    counts = describe_pairs([[(p.chosen, p.rejected)] for p in train], [[(p.chosen, p.rejected)] for p in heldout])
    plan = batches(config, "dpo")
    source = Source(inputs["policy"], "dpo.policy", trust_remote_code=config.model.trust_remote_code)
    policy = load_policy(source, config, config.zero, dpo.dropout)
    learning = TrainingSpec(
        dpo, plan, config.zero, config.lora, dpo.learning_rate, dpo.weight_decay, dpo.gradient_checkpointing
    )
    engine = training_engine(policy, config, learning)
    if dpo.loss in WITH_REFERENCE:
        train, heldout = add_reference(engine, train, heldout, plan, config, pad, context)
    learner = Learner(
        "dpo", dpo, config.lora, plan, engine, train,
        step=lambda own: train_step(engine, own, plan.ranks, config, pad),
        flops=lambda lengths: work(config, lengths),
        size=lambda pair: pair.length,
        batch=lambda own: join_pairs(own, pad).rows,
        evaluate=lambda: evaluate(engine, heldout, plan, config, pad),
        judged_by="eval/accuracy",
        shown=("train/loss", "train/accuracy"),
    )  # fmt: skip
    final = supervised.train(config, context, learner) | counts
    text = write_model_card(context.spec, "dpo", engine, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.lora, context.directory.model, text)
    release(engine)
    return final


def encode(comparisons: Sequence[Comparison], template: Template) -> list[Pair]:
    """Return comparisons as ids, without those whose prompt does not fit."""
    return [Pair(chosen, rejected) for _, (chosen, rejected) in encode_pairs(comparisons, template)]


def add_reference(
    engine: Any, train: list[Pair], heldout: list[Pair], plan: Batches, config: Config, pad: int, context: Context
) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs with the reference's log-probabilities: those that any step reads, and all held-out pairs.

    The reference is the policy before its first step, so it reads the pairs once, before training. A stage that is resumed
    finds its log-probabilities in the stage's directory.
    """
    file = ReferenceFile(context.directory.path / "reference.json")
    size, key = config.dpo.batch_size, "dpo.batch_size"
    steps = total_steps(len(train), size, config.dpo.epochs, config.dpo.max_steps, key)
    read = sorted({number for batch in all_batches(len(train), size, config.seed, key, steps) for number in batch})
    asked = [train[number] for number in read] + heldout
    found = file.read(len(asked))
    if found is None:
        found = reference_logprobs(engine, asked, plan, config, pad)
        if is_main():
            context.directory.check_lock()
            file.write(found)
    judged = [Pair(pair.chosen, pair.rejected, known) for pair, known in zip(asked, found, strict=True)]
    train = list(train)
    for number, pair in zip(read, judged, strict=False):
        train[number] = pair
    return train, judged[len(read) :]


@torch.no_grad()
def reference_logprobs(
    engine: Any, pairs: list[Pair], plan: Batches, config: Config, pad: int
) -> list[tuple[float, float]]:
    """Return the log-probabilities of each pair's responses under the model as it is, in nats, on every rank."""
    engine.eval()
    own: list[tuple[float, float]] = []
    shares = evenly(pairs, plan, rank())
    with Bar("reference", len(shares), is_main()) as bar:
        for number, (part, _) in enumerate(shares, start=1):
            found = read_pairs(engine, part, config.dpo, pad)
            own += zip(found.chosen.tolist(), found.rejected.tolist(), strict=True)
            bar.update(number, {"reading": f"{len(pairs)} pairs"})
    return from_shares(own, len(pairs))


def join_pairs(pairs: Sequence[Pair], pad: int, device: torch.device | None = None) -> ComparisonBatch:
    """Return the answers that a step reads."""
    return comparison_batch([[(pair.chosen, pair.rejected)] for pair in pairs], pad, device)


def read_pairs(engine: Any, pairs: Sequence[Pair], dpo: Dpo, pad: int) -> Pairs:
    """Return the log-probabilities of pairs under the policy, beside the reference's."""
    batch = join_pairs(pairs, pad, engine.device)
    rows, actions = batch.rows, response_mask(batch.rows)
    real = right_mask(rows.lengths, rows.ids.size(1))
    logprobs = target_logprobs(engine, rows.ids, real, actions, dpo.packing)  # [B, T]
    sums = zero_padding(logprobs, actions).sum(1)  # [B]
    tokens = actions.sum(1)
    reference = torch.tensor([pair.reference for pair in pairs], device=engine.device)  # [P, 2]
    return Pairs(
        sums[batch.chosen], sums[batch.rejected], reference[:, 0], reference[:, 1], tokens[batch.chosen],
        tokens[batch.rejected],
    )  # fmt: skip


def train_step(engine: Any, pairs: list[Pair], ranks: int, config: Config, pad: int) -> tuple[dict[str, float], list[int]]:
    """Take one optimiser step on this rank's share of a batch; returns metrics over all ranks, and the lengths of what was
    read."""
    engine.train()
    count, dpo = float(len(pairs) * ranks), config.dpo
    sums = torch.zeros(6, dtype=torch.float64)
    for part in share_pairs(engine, pairs, answers_per_pass(config) // 2, dpo.packing):
        found = read_pairs(engine, part, dpo, pad)
        loss = pair_losses(found, dpo).sum()
        backward(engine, loss, count)
        accumulate(engine)
        sums += measure(found, float(loss.detach()), dpo)
    (norm,) = optimizer_step(engine)
    names = ("loss", "accuracy", "reward_chosen", "reward_rejected", "logp_chosen", "logp_rejected")
    means = {f"train/{name}": value / count for name, value in zip(names, total(*sums.tolist()), strict=True)}
    return means | {"train/grad_norm": norm}, [item.length for pair in pairs for item in (pair.chosen, pair.rejected)]


@torch.no_grad()
def measure(pairs: Pairs, loss: float, dpo: Dpo) -> Tensor:
    """Sum over pairs: loss, right ones, implicit rewards and log-probabilities of chosen and rejected responses; [6]."""
    chosen, rejected = implicit_rewards(pairs, dpo)
    columns = fraction_correct(chosen - rejected), chosen, rejected, pairs.chosen, pairs.rejected
    return torch.tensor([loss, *(float(column.sum()) for column in columns)], dtype=torch.float64)


def share_pairs(engine: Any, pairs: list[Pair], size: int, packing: str) -> Iterator[list[Pair]]:
    """Yield a step's pairs in forward passes of `size` pairs at most; without padding by length."""
    order = list(range(len(pairs)))
    if packing != "none":
        order = sorted(order, key=lambda row: -pairs[row].length)
    for part in micro_batches(order, size, packing, engine):
        yield [pairs[row] for row in part]


@torch.no_grad()
def evaluate(engine: Any, pairs: list[Pair], plan: Batches, config: Config, pad: int) -> dict[str, float]:
    """Loss, accuracy and margin of the implicit reward on held-out pairs, with standard errors over prompts; and the
    responses' log-probabilities."""
    engine.eval()
    own: list[tuple[float, ...]] = []
    for part, _ in evenly(pairs, plan, rank()):
        found = read_pairs(engine, part, config.dpo, pad)
        chosen, rejected = implicit_rewards(found, config.dpo)
        columns = pair_losses(found, config.dpo), fraction_correct(chosen - rejected), chosen - rejected
        own += zip(*(column.tolist() for column in (*columns, found.chosen, found.rejected)), strict=True)
    losses, right, margins, chosen_sums, rejected_sums = zip(*from_shares(own, len(pairs)), strict=True)
    prompts, ones = [tuple(pair.chosen.prompt) for pair in pairs], [1.0] * len(pairs)
    metrics: dict[str, float] = {}
    for name, values in (("loss", losses), ("accuracy", right), ("margin", margins)):
        metrics |= ratio_with_error(f"eval/{name}", prompts, values, ones)
    metrics["eval/logp_chosen"] = sum(chosen_sums) / len(pairs)
    metrics["eval/logp_rejected"] = sum(rejected_sums) / len(pairs)
    return metrics
