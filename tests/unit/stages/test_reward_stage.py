"""A step of reward modelling in forward passes of bounded size."""

import pytest
import torch
from support.tiny_models import learning_scorer, pairs_of_answers

from rlhf.data.encoded import Encoded
from rlhf.engine.zero import release
from rlhf.models.forward import Room
from rlhf.stages.reward import comparisons
from rlhf.stages.reward.comparisons import parts, train_on_comparisons
from rlhf.stages.reward.train import train_step

# Prompts with 6, 2, 3 and 5 answers.
ELEMENTS = [pairs_of_answers(5, 6), pairs_of_answers(6, 2), pairs_of_answers(7, 3), pairs_of_answers(8, 5)]


@pytest.fixture
def sizes(monkeypatch):
    """How many answers each forward pass reads."""
    found, read = [], comparisons.read_scores

    def counting(engine, rows, packing):
        found.append(len(rows.lengths))
        return read(engine, rows, packing)

    monkeypatch.setattr(comparisons, "read_scores", counting)
    return found


def gradient_of(config, tokenizer, answers):
    """Loss, margins and gradient of a step that reads so many answers at a time."""
    engine = learning_scorer(config, tokenizer)
    engine.train()
    torch.manual_seed(3)
    found = train_on_comparisons(engine, ELEMENTS, answers, float(len(ELEMENTS)), tokenizer.pad_token_id)
    gradient = torch.cat([parameter.grad.flatten() for parameter in engine.module.parameters()])
    return found, gradient


@pytest.mark.parametrize("answers", [1, 2, 4, 5, 8])
def test_a_prompt_with_many_answers_is_split_and_the_gradient_is_the_same(make_config, tokenizer, sizes, answers):
    config = make_config()
    whole, expected = gradient_of(config, tokenizer, 100)
    assert sizes == [16]  # all at once
    sizes.clear()
    split, gradient = gradient_of(config, tokenizer, answers)
    assert max(sizes) <= answers
    assert sorted(split.lengths) == sorted(whole.lengths)  # each answer counts once, however often it is read
    assert split.loss == pytest.approx(whole.loss, rel=1e-5)
    assert torch.allclose(split.margins.sort()[0], whole.margins.sort()[0], atol=1e-5)
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("zero", ["1", "2", "3"])
def test_sharded_gradients_too(make_config, tokenizer, zero):
    """Over two steps: what is left of one must not reach the next."""
    norms = []
    for answers in (100, 4):
        engine = learning_scorer(make_config(f"zero='{zero}'"), tokenizer)
        steps = [train_step(engine, ELEMENTS, 1, answers, tokenizer.pad_token_id)[0] for _ in range(2)]
        norms.append([step["train/grad_norm"] for step in steps])
        release(engine)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_prompts_with_few_answers_share_a_pass():
    assert [len(part) for part in parts(ELEMENTS, Room(8))] == [2, 2]
    assert [len(part) for part in parts(ELEMENTS, Room(4))] == [1, 1, 1, 1]  # what is longer than a pass stands alone


def test_answers_that_are_read_twice_meet_the_same_dropout(make_config, tokenizer):
    """The derivative that is carried on was taken at the scores of the first reading."""
    config = make_config("reward.dropout=0.3")
    first, one = gradient_of(config, tokenizer, 4)
    second, other = gradient_of(config, tokenizer, 4)
    assert torch.equal(one, other) and torch.equal(first.margins, second.margins)
    seen = []
    engine = learning_scorer(config, tokenizer)
    engine.train()
    read = comparisons.read_scores

    def remember(engine, rows, packing):
        seen.append(read(engine, rows, packing))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparisons, "read_scores", remember)
        train_on_comparisons(engine, ELEMENTS[:1], 4, 1.0, tokenizer.pad_token_id)
    assert [len(scores) for scores in seen] == [4, 2, 4, 2]
    assert torch.equal(seen[0], seen[2].detach()) and torch.equal(seen[1], seen[3].detach())


def test_a_tie_is_half_right(make_config, tokenizer):
    """Comparisons that hold the same response twice measure nothing: that is no accuracy of 0."""
    same = Encoded([5, 9], [20, 21, 1])
    engine = learning_scorer(make_config(), tokenizer)
    metrics, _ = train_step(engine, [[(same, same)]] * 4, 1, 8, tokenizer.pad_token_id)
    assert metrics["train/accuracy"] == 0.5
