"""Training on pairs, or on single responses with a label: the policy's own log-probabilities are the rewards."""

from functools import partial
from typing import Any

import torch

from rlhf.catalog.preferences import has_reference, needs_mismatched
from rlhf.config.derive import Batches
from rlhf.config.schema import Config, Dpo
from rlhf.data.loaders import evenly, from_shares
from rlhf.data.records import require_records
from rlhf.data.tokenized import DataSource, LabelledResponses, open_data
from rlhf.engine.save import save_model
from rlhf.engine.step import accumulate, optimizer_step
from rlhf.engine.zero import TrainingSpec, backward, release, training_engine
from rlhf.models.load import load_policy
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.planner.batches import answered_together, answers_per_pass, batches
from rlhf.runtime.distributed import rank, total
from rlhf.stages import supervised
from rlhf.stages.answers import HeldoutAnswers
from rlhf.stages.card import write_model_card
from rlhf.stages.context import Context, note_data
from rlhf.stages.dpo import KIND, choose_records, work
from rlhf.stages.dpo.items import Item, Items, Selected, join_items, read_all, read_items, share_items
from rlhf.stages.dpo.measure import NAMES, measure, summarize
from rlhf.stages.dpo.reference import add_reference
from rlhf.stages.dpo.rewards import choose_judges
from rlhf.stages.reward.train import describe_pairs
from rlhf.stages.supervised import Learner


def run(config: Config, inputs: dict[str, str], context: Context) -> dict[str, float]:
    """Train a policy on pairs or labelled responses and save it; returns held-out metrics."""
    dpo, kind, data = config.dpo, choose_records(config), DataSource(config, inputs.get("data"))
    tokenizer = load_tokenizer(inputs["policy"], "dpo.policy", None, config.model.trust_remote_code)
    pad = tokenizer.pad_token_id
    train, heldout = (open_data(data, tokenizer, kind, part) for part in ("train", "heldout"))
    require_records(heldout, kind, config)
    note_data(context, train, heldout)
    items, judged = (Items(part, needs_mismatched(dpo)) for part in (train, heldout))
    plan, size = batches(config, "dpo"), answers_per_pass(config, "dpo") // KIND.sequences(config)
    source = Source(inputs["policy"], "dpo.policy", trust_remote_code=config.model.trust_remote_code)
    policy = load_policy(source, config, config.zero, dpo.dropout)
    learning = TrainingSpec(
        dpo, plan, config.zero, config.lora, dpo.learning_rate, dpo.weight_decay, dpo.gradient_checkpointing, samples=True
    )
    engine = training_engine(policy, config, learning)
    if has_reference(dpo):
        read = partial(read_all, engine, plan=plan, dpo=dpo, pad=pad, label="reference")
        add_reference(config, inputs["policy"], items, judged, read)
    paths = {name: path for name, path in inputs.items() if name != "policy"}
    together = answered_together(config, "dpo")
    prompts = data if data.path is None else DataSource(config)  # the same prompts, wherever the records are from
    answers = HeldoutAnswers(
        choose_judges(config), context, prompts, source, engine, paths, tokenizer, together, dpo.packing
    )
    del data
    learner = Learner(
        "dpo", dpo, config.lora, plan, engine, items,
        step=lambda own: train_step(engine, own, plan.ranks, size, dpo, pad),
        flops=lambda lengths: work(config, lengths),
        sizes=train.sizes,
        batch=lambda own: join_items(own, pad),
        evaluate=lambda: evaluate(engine, judged, plan, config, pad),
        judged_by="eval/accuracy",
        shown=("train/loss", "train/accuracy", "eval/gold"),
        answers=answers,
    )  # fmt: skip
    final = supervised.train(config, context, learner) | describe_records(train, heldout)
    text = write_model_card(context, "dpo", engine, tokenizer, final)
    context.directory.check_lock()
    save_model(engine, tokenizer, config.lora, context.directory.model, text)
    answers.close()
    release(engine)
    return final


def describe_records(train: Any, heldout: Any) -> dict[str, float]:
    """Metrics of the data: of pairs as the reward stage has them, of labelled responses how many have which label."""
    if not isinstance(train, LabelledResponses):
        return describe_pairs(train, heldout)
    desirable = float(train.desirable.sum())
    counts = {"data/desirable": desirable, "data/undesirable": len(train) - desirable}
    return train.count_responses(heldout) | counts


def train_step(
    engine: Any, items: list[Item], ranks: int, size: int, dpo: Dpo, pad: int
) -> tuple[dict[str, float], list[int]]:
    """Take one optimiser step on this rank's share of a batch, at most `size` items at a time; returns metrics over all
    ranks, and the lengths of what was read."""
    count = float(len(items) * ranks)
    kl = estimate_kl(engine, items, count, size, dpo, pad) if needs_mismatched(dpo) else None
    engine.train()
    sums = torch.zeros(2, len(NAMES), dtype=torch.float64)
    for part in share_items(engine, items, size, dpo.packing):
        found = measure(read_items(engine, part, dpo, pad), kl or 0.0, dpo)
        backward(engine, found["loss"][0].sum(), count)
        accumulate(engine)
        for place, name in enumerate(NAMES):
            values, counts = (column.detach().double().cpu() for column in found[name])
            sums[:, place] += torch.stack([(values * counts).sum(), counts.sum()])
    (norm,) = optimizer_step(engine)
    totals = total(*sums.flatten().tolist())
    halves = totals[: len(NAMES)], totals[len(NAMES) :]
    means = {f"train/{name}": amount / number for name, amount, number in zip(NAMES, *halves, strict=True) if number > 0}
    means |= {"train/grad_norm": norm} | ({} if kl is None else {"train/kl_estimate": kl})
    return means, [answer.length for item in items for answer in item.answers]


@torch.no_grad()
def estimate_kl(engine: Any, items: list[Item], count: float, size: int, dpo: Dpo, pad: int) -> float:
    """Return KTO's reference point: the mean log-ratio to the reference of responses to other prompts, over the `count`
    items of all ranks, or 0 where that is below 0; in nats (arXiv 2402.01306, section 4)."""
    engine.eval()
    mismatched = [item.mismatched for item in items if item.mismatched is not None]
    own = torch.zeros((), dtype=torch.float64)
    for part in share_items(engine, mismatched, size, dpo.packing):
        found = read_items(engine, part, dpo, pad)
        own += (found.sums - found.reference).double().sum().cpu()
    return max(0.0, total(float(own))[0] / (len(items[0].answers) * count))


@torch.no_grad()
def evaluate(engine: Any, items: Items, plan: Batches, config: Config, pad: int) -> dict[str, float]:
    """Loss, accuracy and margin of the implicit reward on held-out items, with standard errors over prompts; and the
    responses' log-probabilities."""
    kl = heldout_kl(engine, items, plan, config.dpo, pad) if needs_mismatched(config.dpo) else 0.0
    engine.eval()
    own: list[tuple[float, ...]] = []
    for part, _ in evenly(items, plan, rank()):
        found = measure(read_items(engine, part, config.dpo, pad), kl, config.dpo)
        own += zip(*(column.tolist() for name in NAMES for column in found[name]), strict=True)
    values = [list(column) for column in zip(*from_shares(own, len(items)), strict=True)]
    columns = {name: (values[2 * place], values[2 * place + 1]) for place, name in enumerate(NAMES)}
    return summarize(items.rows.groups.tolist(), columns, config.dpo.unpaired)


def heldout_kl(engine: Any, items: Items, plan: Batches, dpo: Dpo, pad: int) -> float:
    """Return KTO's reference point over all held-out items, in nats."""
    mismatched = Selected(items.mismatch, range(len(items)))
    found = read_all(engine, mismatched, plan, dpo, pad, "KL")
    ratios = [sum(sums) - sum(item.reference) for sums, item in zip(found, mismatched, strict=True)]
    return max(0.0, sum(ratios) / sum(map(len, found)))
