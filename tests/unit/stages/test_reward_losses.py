"""The losses of the reward stage on models and records."""

import json

import pytest
import torch
import torch.nn.functional as F
from support.tiny_models import learning_scorer

from rlhf.cli.prepare import resolve_config
from rlhf.config.errors import ConfigError
from rlhf.data.dataset import Record
from rlhf.data.encoded import Encoded
from rlhf.data.records import load_dataset, pairs_of
from rlhf.data.tokenized import DataSource, open_data
from rlhf.data.tokens import comparison_batch
from rlhf.engine.zero import release
from rlhf.stages.reward.comparisons import (
    Objective,
    order_answers,
    orders_of,
    pairs_loss,
    read_outputs,
    train_on_comparisons,
)
from rlhf.stages.reward.train import describe_objective

PROMPT = [5, 9]
ANSWERS = [Encoded(PROMPT, [20 + number] * (2 + number % 3) + [1]) for number in range(4)]


def ranked(*order):
    """All pairs of answers in this order, the best first."""
    return [(ANSWERS[a], ANSWERS[b]) for place, a in enumerate(order) for b in order[place + 1 :]]


@pytest.fixture(scope="module")
def scorer(make_config, tokenizer):
    engine = learning_scorer(make_config(), tokenizer)
    engine.eval()
    yield engine
    release(engine)


def deepspeed_chat_loss(values, ids, pad):
    """DeepSpeed-Chat's loop over pairs, rows B of chosen and then B of rejected texts (reward_model.py, forward)."""
    count = ids.size(0) // 2
    total = 0.0
    for number in range(count):
        chosen, rejected = ids[number], ids[count + number]
        ends = [int((row == pad).nonzero()[0]) if (row == pad).any() else ids.size(1) for row in (chosen, rejected)]
        start, end = int((chosen != rejected).nonzero()[0]), max(ends)
        total += -F.logsigmoid(values[number][start:end] - values[count + number][start:end]).mean()
    return total


def test_the_token_wise_loss_is_deepspeed_chats(scorer, tokenizer):
    elements, pad = [[(ANSWERS[0], ANSWERS[1])], [(ANSWERS[2], ANSWERS[0])]], tokenizer.pad_token_id
    batch = comparison_batch(elements, pad, scorer.device)
    outputs = read_outputs(scorer, batch.rows)
    loss, margins = pairs_loss(outputs, batch, Objective("token_wise"))
    rows = torch.cat([batch.chosen, batch.rejected])
    assert loss.item() == pytest.approx(deepspeed_chat_loss(outputs[rows], batch.rows.ids[rows], pad).item(), rel=1e-6)
    ends = batch.rows.lengths - 1
    scores = outputs[torch.arange(len(ends)), ends]
    assert torch.equal(margins, scores[batch.chosen] - scores[batch.rejected])


@pytest.mark.parametrize("objective", [Objective("token_wise"), Objective("plackett_luce"), Objective(center_coef=0.1)])
def test_each_loss_has_the_gradient_of_its_value(scorer, tokenizer, objective):
    grouped = objective.loss != "token_wise"
    elements = [ranked(0, 1, 2), ranked(3, 0)] if grouped else [[pair] for pair in ranked(0, 1, 2)]
    passes = (2, 100) if grouped else (2, 4)  # split into several passes, and in one
    found = []
    for answers in passes:
        scorer.module.zero_grad()
        reading = train_on_comparisons(scorer, elements, answers, 2.0, tokenizer.pad_token_id, "none", objective)
        found.append((reading.loss, torch.cat([p.grad.flatten() for p in scorer.module.parameters()]).clone()))
        for parameter in scorer.module.parameters():
            parameter.grad = None
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][0] > 0
    assert (found[0][1] - found[1][1]).norm() <= 1e-5 * found[1][1].norm()


def test_an_order_is_what_all_pairs_agree_on():
    assert order_answers([("b", "a"), ("b", "c"), ("a", "c")]) == ["b", "a", "c"]
    assert order_answers([("a", "b"), ("b", "c"), ("c", "a")]) == []  # a circle
    assert order_answers([("a", "b"), ("a", "c")]) == []  # b and c were not compared
    assert order_answers([("a", "b")]) == ["a", "b"]


def test_a_prompt_without_one_order_is_trained_by_its_pairs(tokenizer):
    circle = [(ANSWERS[0], ANSWERS[1]), (ANSWERS[1], ANSWERS[2]), (ANSWERS[2], ANSWERS[0])]
    batch = comparison_batch([ranked(1, 0), circle], tokenizer.pad_token_id)
    assert [order.rows for order in orders_of(batch)] == [[0, 1]]
    scores = torch.tensor([0.3, -0.1, 1.0, 2.0, 0.5])
    mixed = pairs_loss(scores, batch, Objective("plackett_luce"))[0]
    assert mixed.item() == pytest.approx(pairs_loss(scores, batch, Objective())[0].item())  # of two, both are one loss


def test_margins_come_from_scores_and_grades():
    pair = {"prompt": "?", "chosen": "yes", "rejected": "no"}
    for meta, margin in (
        ({"score_chosen": 8, "score_rejected": 5.5}, 2.5), ({"margin": 0.667}, 0.667), ({"preference_strength": -3}, 3.0),
        ({"margin": "much"}, 0.0), ({}, 0.0),
    ):  # fmt: skip
        assert list(pairs_of(Record(**pair, meta=meta))) == [("yes", "no", margin)]
    found = pairs_of(Record("?", ranked=(("a", 1.0), ("b", 3.0), ("c", 3.0))))
    assert list(found) == [("b", "a", 2.0), ("c", "a", 2.0)]


def test_margins_reach_the_loss(make_config, tokenizer, tmp_path):
    rows = [{"prompt": f"Q{n}?", "chosen": "yes it is", "rejected": "no", "margin": n / 2} for n in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        "data=files", f"data.files.train={tmp_path}/train.jsonl", f"data.files.heldout={tmp_path}/train.jsonl",
        f"output_root={tmp_path}", "reward.margin_coef=2",
    )  # fmt: skip
    assert [pair.margin for pair in load_dataset(config).train.comparisons] == [0.0, 0.5, 1.0]
    data = open_data(DataSource(config), tokenizer, "comparisons", "train")
    batch = comparison_batch([data[number] for number in range(3)], tokenizer.pad_token_id)
    assert batch.margins.tolist() == [0.0, 0.5, 1.0]
    scores = torch.zeros(6)
    expected = sum(-F.logsigmoid(torch.tensor(-2 * margin)).item() for margin in (0.0, 0.5, 1.0))
    assert pairs_loss(scores, batch, Objective(margin_coef=2.0))[0].item() == pytest.approx(expected)
    assert describe_objective(data, config.reward) == {}
    data.margins = data.margins * 0
    with pytest.raises(ConfigError, match=r"reward.margin_coef=2.0: no training record says a margin; give the records a"):
        describe_objective(data, config.reward)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("reward.loss=token_wise",), "reward.loss=token_wise: it reads each pair by itself.*; set reward.grouped=false"),
        (("reward.loss=plackett_luce", "reward.grouped=false"), "reads all pairs of a prompt together.*grouped=true"),
        (
            ("reward.loss=token_wise", "reward.grouped=false", "reward.margin_coef=1"),
            "margin_coef=1.0: reward.loss=token_wise does",
        ),
        (
            ("reward.loss=plackett_luce", "reward.grouped=true", "reward.label_smoothing=0.1"),
            "label_smoothing=0.1: reward.loss=plackett_luce does not read it",
        ),
    ],
)
def test_losses_that_cannot_work_are_refused(make_config, words, told):
    with pytest.raises(ConfigError, match=told):
        resolve_config(make_config("stage=reward", *words))
