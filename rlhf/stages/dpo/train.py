"""Training on pairs: the policy's own log-probabilities are the rewards that are compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.algo.dpo import Logprobs, implicit_rewards, pair_losses
from rlhf.algo.errors import ratio_with_error
from rlhf.algo.masked import masked_sum_rows
from rlhf.config.derive import Batches
from rlhf.config.schema import Config, Dpo
from rlhf.data.encoded import Encoded
from rlhf.data.loaders import all_batches, evenly, from_shares, total_steps
from rlhf.data.records import require_records
from rlhf.data.tokenized import Comparisons, DataSource, open_data
from rlhf.data.tokens import ComparisonBatch, comparison_batch, response_mask, right_mask
from rlhf.engine.save import save_model
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, training_engine
from rlhf.models.forward import micro_batches, target_logprobs
from rlhf.models.load import load_policy
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.planner.batches import answers_per_pass, batches
from rlhf.runtime.distributed import is_main, rank, total
from rlhf.stages import supervised
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context
from rlhf.stages.dpo import WITH_REFERENCE, work
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


class Pairs(Sequence[Pair]):
    """The pairs of a data set, read from disk when they are asked for, with the reference's log-probabilities of some, by
    their numbers."""

    def __init__(self, rows: Comparisons, reference: Mapping[int, tuple[float, float]]) -> None:
        self.rows, self.reference = rows, reference

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        """Return a pair, or, of a slice, a list of them."""
        if isinstance(number, slice):
            return [self[row] for row in range(*number.indices(len(self)))]
        ((chosen, rejected),) = self.rows[number]
        return Pair(chosen, rejected, self.reference.get(number, (0.0, 0.0)))


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a policy on pairs and save it; returns held-out metrics."""
    dpo, data = config.dpo, DataSource(config)
    tokenizer = load_tokenizer(inputs["policy"], "dpo.policy", None, config.model.trust_remote_code)
    pad = tokenizer.pad_token_id
    train, heldout = (open_data(data, tokenizer, "comparisons", part) for part in ("train", "heldout"))
    require_records(heldout, "comparisons", config)
    del data
    plan, size = batches(config, "dpo"), answers_per_pass(config, "dpo") // 2
    source = Source(inputs["policy"], "dpo.policy", trust_remote_code=config.model.trust_remote_code)
    policy = load_policy(source, config, config.zero, dpo.dropout)
    learning = TrainingSpec(
        dpo, plan, config.zero, config.lora, dpo.learning_rate, dpo.weight_decay, dpo.gradient_checkpointing
    )
    engine = training_engine(policy, config, learning)
    pairs, judged = Pairs(train, {}), Pairs(heldout, {})
    if dpo.loss in WITH_REFERENCE:
        pairs.reference, judged.reference = read_reference(engine, pairs, judged, plan, config, pad, context)
    learner = Learner(
        "dpo", dpo, config.lora, plan, engine, pairs,
        step=lambda own: train_step(engine, own, plan.ranks, size, dpo, pad),
        flops=lambda lengths: work(config, lengths),
        sizes=train.sizes,
        batch=lambda own: join_pairs(own, pad).rows,
        evaluate=lambda: evaluate(engine, judged, plan, config, pad),
        judged_by="eval/accuracy",
        shown=("train/loss", "train/accuracy"),
    )  # fmt: skip
    final = supervised.train(config, context, learner) | describe_pairs(train, heldout)
    text = write_model_card(context.spec, "dpo", engine, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.lora, context.directory.model, text)
    release(engine)
    return final


def read_reference(
    engine: Any, train: Pairs, heldout: Pairs, plan: Batches, config: Config, pad: int, context: Context
) -> tuple[dict[int, tuple[float, float]], dict[int, tuple[float, float]]]:
    """Return the reference's log-probabilities of the training pairs that any step reads and of all held-out pairs, by
    their numbers.

    The reference is the policy before its first step, so it reads the pairs once, before training. A stage that is resumed
    finds the log-probabilities in the stage's directory.
    """
    file = ReferenceFile(context.directory.path / "reference.json")
    size, key = config.dpo.batch_size, "dpo.batch_size"
    steps = total_steps(len(train), size, config.dpo.epochs, config.dpo.max_steps, key)
    numbers = sorted({number for batch in all_batches(len(train), size, config.seed, key, steps) for number in batch})
    found = file.read(len(numbers) + len(heldout))
    if found is None:
        found = reference_logprobs(engine, Chosen(train, numbers), plan, config, pad)
        found += reference_logprobs(engine, heldout, plan, config, pad)
        if is_main():
            context.directory.check_lock()
            file.write(found)
    return dict(zip(numbers, found, strict=False)), dict(enumerate(found[len(numbers) :]))


class Chosen(Sequence[Pair]):
    """Some of the pairs, by their numbers."""

    def __init__(self, pairs: Pairs, numbers: list[int]) -> None:
        self.pairs, self.numbers = pairs, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: Any) -> Any:
        """Return a pair."""
        return self.pairs[self.numbers[row]]


@torch.no_grad()
def reference_logprobs(
    engine: Any, pairs: Sequence[Pair], plan: Batches, config: Config, pad: int
) -> list[tuple[float, float]]:
    """Return the log-probabilities of each pair's responses under the model as it is, in nats, on every rank."""
    engine.eval()
    own: list[tuple[float, float]] = []
    with Bar("reference", len(pairs), is_main()) as bar:
        for part, _ in evenly(pairs, plan, rank()):
            found = read_pairs(engine, part, config.dpo, pad)
            own += zip(found.chosen.tolist(), found.rejected.tolist(), strict=True)
            bar.update(min(len(own) * plan.ranks, len(pairs)), {"reading": "log-probabilities"})
    return from_shares(own, len(pairs))


def join_pairs(pairs: Sequence[Pair], pad: int, device: torch.device | None = None) -> ComparisonBatch:
    """Return the answers that a step reads."""
    return comparison_batch([[(pair.chosen, pair.rejected)] for pair in pairs], pad, device)


def read_pairs(engine: Any, pairs: Sequence[Pair], dpo: Dpo, pad: int) -> Logprobs:
    """Return the log-probabilities of pairs under the policy, beside the reference's."""
    batch = join_pairs(pairs, pad, engine.device)
    rows, actions = batch.rows, response_mask(batch.rows)
    real = right_mask(rows.lengths, rows.ids.size(1))
    logprobs = target_logprobs(engine, rows.ids, real, actions, dpo.packing)  # [B, T]
    sums = masked_sum_rows(logprobs, actions)  # [B]
    tokens = actions.sum(1)
    reference = torch.tensor([pair.reference for pair in pairs], device=engine.device)  # [P, 2]
    return Logprobs(
        sums[batch.chosen], sums[batch.rejected], reference[:, 0], reference[:, 1], tokens[batch.chosen],
        tokens[batch.rejected],
    )  # fmt: skip


def train_step(
    engine: Any, pairs: list[Pair], ranks: int, size: int, dpo: Dpo, pad: int
) -> tuple[dict[str, float], list[int]]:
    """Take one optimiser step on this rank's share of a batch, at most `size` pairs at a time; returns metrics over all
    ranks, and the lengths of what was read."""
    engine.train()
    count = float(len(pairs) * ranks)
    sums = torch.zeros(6, dtype=torch.float64)
    for part in share_pairs(engine, pairs, size, dpo.packing):
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
def measure(pairs: Logprobs, loss: float, dpo: Dpo) -> Tensor:
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
def evaluate(engine: Any, pairs: Pairs, plan: Batches, config: Config, pad: int) -> dict[str, float]:
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
    prompts, ones = pairs.rows.groups.tolist(), [1.0] * len(pairs)
    metrics: dict[str, float] = {}
    for name, values in (("loss", losses), ("accuracy", right), ("margin", margins)):
        metrics |= ratio_with_error(f"eval/{name}", prompts, values, ones)
    metrics["eval/logp_chosen"] = sum(chosen_sums) / len(pairs)
    metrics["eval/logp_rejected"] = sum(rejected_sums) / len(pairs)
    return metrics
