import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.estimators.gae import advantages_and_returns
from rlhf.algo.rewards import shape_scores, token_rewards

seeds, rows, widths = st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9)
factors = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("clip", "penalty", "mode", "expected"),
    [
        (None, None, "replace", [7.0, 7.0, -7.0, -7.0]),
        (5.0, None, "replace", [5.0, 5.0, -5.0, -5.0]),  # row 12
        (None, -1.0, "replace", [7.0, -1.0, -7.0, -1.0]),  # row 16
        (None, 1.5, "subtract", [7.0, 5.5, -7.0, -8.5]),  # row 16
        (None, -1.5, "subtract", [7.0, 5.5, -7.0, -8.5]),  # the same number in both modes; no penalty raises a score
        (5.0, 1.5, "subtract", [5.0, 3.5, -5.0, -6.5]),  # the penalty comes after the clip
        (0.5, -1.0, "replace", [0.5, -1.0, -0.5, -1.0]),
        (None, 0.0, "replace", [7.0, 0.0, -7.0, 0.0]),
    ],
)
def test_scores_are_clipped_then_penalised_where_the_response_did_not_end(clip, penalty, mode, expected):
    scores, ended = torch.tensor([7.0, 7.0, -7.0, -7.0]), torch.tensor([True, False, True, False])
    assert shape_scores(scores, ended, clip, penalty, mode).tolist() == expected


def test_score_lands_on_the_last_action_and_kl_on_every_action():  # rows 17, 18
    kl = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, -0.6, 9.0, 9.0], [1.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])  # full width; end-of-text second; end-of-text only
    rewards = token_rewards(torch.tensor([2.0, -3.0, 4.0]), kl, mask, kl_coef=0.5)
    expected = [[-0.05, -0.1, -0.15, 1.8], [-0.25, 0.3 - 3.0, 0.0, 0.0], [3.5, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_an_empty_response_gets_no_reward():
    assert token_rewards(torch.tensor([5.0]), torch.ones(1, 3), torch.zeros(1, 3), 0.1).abs().sum() == 0.0


def test_a_part_of_the_score_may_fall_on_other_tokens():
    """The sum stays the score: what was clipped from it or added is on the last action."""
    mask, parts = torch.tensor([[1, 1, 1], [1, 1, 0]]), torch.tensor([[0.5, 0.0, 1.0], [4.0, 0.0, 9.0]])
    found = token_rewards(torch.tensor([2.0, 1.0]), torch.zeros(2, 3), mask, 0.1, parts)
    assert found.tolist() == [[0.5, 0.0, 1.5], [4.0, -3.0, 0.0]]


@given(seeds, rows, widths, st.floats(0.0, 2.0))
def test_rewards_sum_to_the_score_less_the_kl_penalty(ragged, seed, rows, width, coef):
    mask, kl, scores = ragged(seed, rows, width, 2)
    rewards = token_rewards(scores[:, 0], kl, mask, coef)
    torch.testing.assert_close(rewards.sum(1), scores[:, 0] - coef * (kl * mask).sum(1))


@given(seeds, rows, widths)
def test_rewards_ignore_nan_in_padding(ragged, poison, seed, rows, width):  # row 29
    mask, kl, scores = ragged(seed, rows, width, 2)
    found = token_rewards(scores[:, 0], poison(kl, mask), mask, 0.1)
    assert torch.equal(found, token_rewards(scores[:, 0], kl * mask, mask, 0.1))


def test_gae_of_a_hand_case():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.6, 0.7]])
    advantages, returns = advantages_and_returns(rewards, values, torch.ones(1, 3), gamma=0.9, gae_lambda=0.8)
    # Deltas 0.9 * 0.6 - 0.5 = 0.04, 0.9 * 0.7 - 0.6 = 0.03, 1 - 0.7 = 0.3; each advantage adds 0.72 times the next one.
    torch.testing.assert_close(advantages, torch.tensor([[0.21712, 0.246, 0.3]]))
    torch.testing.assert_close(returns, torch.tensor([[0.71712, 0.846, 1.0]]))


@given(seeds, rows, widths)
def test_gae_without_discount_is_return_minus_value(ragged, seed, rows, width):
    mask, rewards, values = ragged(seed, rows, width, 2)
    rewards = rewards * mask
    advantages, returns = advantages_and_returns(rewards, values, mask, 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(advantages, (to_go - values) * mask)
    torch.testing.assert_close(returns, to_go)


@given(seeds, rows, widths, factors, factors)
def test_gae_equals_the_sum_of_discounted_errors(ragged, seed, rows, width, gamma, lam):  # row 21
    """The definition (arXiv 1506.02438, eq. 16), one sum per token over plain lists."""
    mask, rewards, values = ragged(seed, rows, width, 2)
    rewards = rewards * mask
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma, lam)
    for row, length in enumerate(mask.sum(1).tolist()):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(expected + v[t], abs=1e-9)
        assert advantages[row, length:].abs().sum() == 0.0
        assert returns[row, length:].abs().sum() == 0.0  # row 17: value and return masks agree


@given(seeds, rows, widths, factors, factors)
def test_gae_ignores_what_padding_holds(ragged, poison, seed, rows, width, gamma, lam):  # row 29
    mask, rewards, values, _ = ragged(seed, rows, width, 3)
    clean = advantages_and_returns(rewards * mask, values * mask, mask, gamma, lam)
    for dirty_rewards, dirty_values in (
        (rewards, values),
        (poison(rewards, mask), values * mask),
        (rewards * mask, poison(values, mask)),
    ):
        for found, expected in zip(
            advantages_and_returns(dirty_rewards, dirty_values, mask, gamma, lam), clean, strict=True
        ):
            assert torch.equal(found, expected)
