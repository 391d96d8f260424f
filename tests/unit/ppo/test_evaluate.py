"""What the held-out evaluation makes of two policies' answers."""

import pytest

from rlhf.ppo.evaluate import SAMPLES_KEPT, Answer, Evaluation, compare


def answers(count, gold=True):
    """Answers to so many prompts, with figures that are easy to check."""
    return [Answer(f"prompt {i}", f"answer {i}", float(i % 2), i % 4 if gold else None, 2.0, 10 + i) for i in range(count)]


def test_the_last_evaluation_keeps_every_answer(make_config):
    evaluation, found = Evaluation(None, make_config(), None, []), answers(40)
    rows = evaluation.samples(found, found, last=True)
    assert [row["prompt"] for row in rows] == [f"prompt {i}" for i in range(40)]
    assert len(evaluation.samples(found, found, last=False)) == SAMPLES_KEPT < 40


def test_final_figures_have_errors_over_prompts():
    found = compare(answers(8), answers(8))
    assert (found["eval/reward"], found["eval/reward_se"]) == (0.5, pytest.approx((2 / 7) ** 0.5 / 8**0.5))
    assert (found["eval/kl_sequence"], found["eval/kl_sequence_se"]) == (2.0, 0.0)
    for name in ("gold", "gold_sft", "length", "length_sft", "reward_sft"):
        assert found[f"eval/{name}_se"] > 0
    assert not any("gold" in name for name in compare(answers(8, gold=False), answers(8, gold=False)))
    assert not any(name.endswith("_se") for name in compare(answers(1), answers(1)))
