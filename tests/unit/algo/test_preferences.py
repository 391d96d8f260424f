"""The losses of reward models, by hand-computed cases."""

import math

import pytest
import torch

from rlhf.algo.preferences import center_penalty, pair_loss, plackett_luce_loss, token_wise_loss

ONE = torch.ones(1)


def bradley_terry(gap):
    return math.log1p(math.exp(-gap))


def test_pair_loss_of_hand_cases():
    chosen, rejected = torch.tensor([0.0, 2.0, -1000.0]), torch.tensor([0.0, 1.0, 0.0])
    expected = [math.log(2), math.log(1 + math.exp(-1)), 1000.0]
    for pair, loss in enumerate(expected):
        weights = torch.zeros(3)
        weights[pair] = 1.0
        assert pair_loss(chosen, rejected, weights).item() == pytest.approx(loss, rel=1e-6)
    weights = torch.tensor([0.5, 0.25, 0.25])
    mixed = sum(w * loss for w, loss in zip(weights.tolist(), expected, strict=True))
    assert pair_loss(chosen, rejected, weights).item() == pytest.approx(mixed, rel=1e-6)


def test_pair_loss_raises_the_chosen_score():
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    pair_loss(chosen, rejected, torch.ones(1)).backward()
    assert (chosen.grad.item(), rejected.grad.item()) == (-0.5, 0.5)


def test_pair_loss_of_half_precision_is_computed_in_float32():
    chosen, rejected = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.5], dtype=torch.bfloat16)
    loss = pair_loss(chosen, rejected, torch.ones(1))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-6)


def test_a_margin_is_taken_from_the_gap():
    chosen, rejected = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.5])
    found = pair_loss(chosen, rejected, torch.ones(2), torch.tensor([1.0, 0.0]))
    assert found.item() == pytest.approx(bradley_terry(-0.5) + bradley_terry(0.5))


def test_smoothed_labels_count_swapped_too():
    found = pair_loss(torch.tensor([2.0]), torch.tensor([0.0]), ONE, label_smoothing=0.1)
    assert found.item() == pytest.approx(0.9 * bradley_terry(2.0) + 0.1 * bradley_terry(-2.0))


def test_the_center_penalty_is_the_squared_sum():
    assert center_penalty(torch.tensor([1.0, 2.0]), torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.5])).item() == 2.25


def test_plackett_luce_of_two_is_bradley_terry_and_of_three_is_a_product_of_choices():
    assert plackett_luce_loss(torch.tensor([1.5, 1.0])).item() == pytest.approx(bradley_terry(0.5))
    scores = [2.0, 0.5, 1.0]
    sums = [sum(map(math.exp, scores[place:])) for place in range(3)]
    expected = -math.log(math.exp(2.0) / sums[0]) - math.log(math.exp(0.5) / sums[1])
    assert plackett_luce_loss(torch.tensor(scores)).item() == pytest.approx(expected)
    assert plackett_luce_loss(torch.tensor([1.0])).item() == 0


def test_the_token_wise_loss_is_a_mean_over_the_span():
    chosen = torch.tensor([[9.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, 7.0]])
    rejected = torch.tensor([[-9.0, 0.0, 0.0, 9.0], [0.0, 5.0, 0.0, 7.0]])
    starts, ends, weights = torch.tensor([1, 2]), torch.tensor([3, 3]), torch.tensor([1.0, 0.5])
    expected = (bradley_terry(1) + bradley_terry(2)) / 2 + 0.5 * bradley_terry(1)
    assert token_wise_loss(chosen, rejected, starts, ends, weights).item() == pytest.approx(expected)
