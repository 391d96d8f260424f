import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.errors import mean_with_error, ratio_with_error

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(numbers)
def test_the_error_of_a_mean_is_the_deviation_over_the_root_of_n(values):
    found = mean_with_error("eval/gold", values)
    assert found["eval/gold"] == pytest.approx(np.mean(values), abs=1e-9)
    assert found["eval/gold_se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)


def test_answers_to_one_prompt_count_as_one_draw():
    """Four pairs of two prompts, alike within each: two draws, not four."""
    found = ratio_with_error("eval/accuracy", ["a", "a", "b", "b"], [1, 1, 0, 0], [1, 1, 1, 1])
    assert found == {"eval/accuracy": 0.5, "eval/accuracy_se": pytest.approx(0.5)}
    assert mean_with_error("x", [1, 1, 0, 0])["x_se"] == pytest.approx(math.sqrt(1 / 12))


def test_the_error_of_a_ratio_is_that_of_resampled_prompts():
    """Loss per token: a prompt's tokens are drawn together. Against the bootstrap over prompts."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, 400).astype(float)
    losses = tokens * rng.normal(2.0, 0.5, 400)
    found = ratio_with_error("eval/loss", range(400), losses, tokens)
    drawn = rng.integers(400, size=(2000, 400))
    ratios = losses[drawn].sum(1) / tokens[drawn].sum(1)
    assert found["eval/loss"] == pytest.approx(losses.sum() / tokens.sum())
    assert found["eval/loss_se"] == pytest.approx(ratios.std(), rel=0.06)


def test_one_prompt_alone_has_no_error():
    assert ratio_with_error("eval/loss", ["a", "a"], [2.0, 4.0], [1.0, 2.0]) == {"eval/loss": 2.0}
