"""What the held-out evaluation makes of two policies' answers."""

import pytest

from rlhf.catalog.stage import kind_of
from rlhf.evaluation.heldout import SAMPLES_KEPT, Answer, align, compare


def answers(count, gold=True):
    """Answers to so many prompts, with figures that are easy to check."""
    return [Answer(f"prompt {i}", f"answer {i}", float(i % 2), i % 4 if gold else None, 2.0, 10 + i) for i in range(count)]


def test_the_last_evaluation_keeps_every_answer():
    found, sides = answers(40), kind_of("ppo").sides
    rows = align(found, found, sides, is_last=True)
    assert [row["prompt"] for row in rows] == [f"prompt {i}" for i in range(40)]
    assert len(align(found, found, sides, is_last=False)) == SAMPLES_KEPT < 40


def test_final_figures_have_errors_over_prompts():
    found = compare(answers(8), answers(8))
    assert (found["eval/reward"], found["eval/reward_se"]) == (0.5, pytest.approx((2 / 7) ** 0.5 / 8**0.5))
    assert (found["eval/kl_sequence"], found["eval/kl_sequence_se"]) == (2.0, 0.0)
    for name in ("gold", "gold_sft", "length", "length_sft", "reward_sft"):
        assert found[f"eval/{name}_se"] > 0
    assert not any("gold" in name for name in compare(answers(8, gold=False), answers(8, gold=False)))
    assert not any(name.endswith("_se") for name in compare(answers(1), answers(1)))


def test_a_win_is_a_higher_score_and_a_tie_half_of_one():
    def scored(*scores):
        return [Answer("prompt", "answer", score, None, 0.0, 1, entropy=score) for score in scores]

    found = compare(scored(0, 0, 0, 0), scored(1, 0, -1, 2))
    assert (found["eval/win_rate"], found["eval/entropy"]) == (0.625, 0.5)
    assert found["eval/win_rate_se"] == pytest.approx((0.6875 / 3) ** 0.5 / 2)  # of 1, 1/2, 0 and 1
    by_gold = [[Answer("prompt", "answer", None, gold, 0.0, 1) for gold in golds] for golds in ((0, 1), (1, 1))]
    assert compare(*by_gold)["eval/win_rate"] == 0.75 and "eval/reward" not in compare(*by_gold)
    assert "eval/entropy" not in compare(answers(2), answers(2))  # as of answers that an earlier release kept


def test_a_gold_reward_that_does_not_judge_an_answer_leaves_its_prompt_out():
    before, after = ([Answer("?", "a", None, gold, 0.0, 1) for gold in golds] for golds in ((1, None, 3), (2, 7, None)))
    found = compare(before, after)
    assert (found["eval/gold"], found["eval/gold_sft"], found["eval/win_rate"]) == (2, 1, 1)
    assert not any("gold" in name for name in compare(before[1:2], after[1:2]))
