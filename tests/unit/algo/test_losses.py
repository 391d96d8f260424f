import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.losses import policy_loss, policy_ratio, value_loss

pytestmark = pytest.mark.rounding

seeds, rows, widths = st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 9)
ONE = torch.ones(1, 1)


def cell(number):
    return torch.tensor([[number]], requires_grad=True)


def test_ratio_of_a_hand_case_is_one_on_padding():
    old, mask = torch.tensor([[-1.0, -2.0, 5.0]]), torch.tensor([[1, 1, 0]])
    ratio, cut = policy_ratio(torch.tensor([[-1.5, -1.0, -5.0]]), old, mask, clip=20.0)
    torch.testing.assert_close(ratio, torch.tensor([[math.exp(-0.5), math.e, 1.0]]))
    assert cut == 0


def test_log_ratios_are_cut_at_twenty_and_counted():  # row 31
    differences, mask = torch.tensor([[20.0, -20.0, 20.5, -300.0, 1e4, 99.0]]), torch.tensor([[1, 1, 1, 1, 1, 0]])
    ratio, cut = policy_ratio(differences, torch.zeros(1, 6), mask, clip=20.0)
    assert cut == 3
    expected = [20.0, -20.0, 20.0, -20.0, 20.0, 0.0]
    torch.testing.assert_close(ratio, torch.tensor([expected]).exp())


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.5, 1.0, -1.2, 1, 0.0),
        (0.5, 1.0, -0.5, 0, -1.0),
        (1.5, -1.0, 1.5, 0, 1.0),
        (0.5, -1.0, 0.8, 1, 0.0),
        (1.1, 2.0, -2.2, 0, -2.0),
    ],
)
def test_policy_loss_is_the_larger_of_clipped_and_unclipped(ratio, advantage, loss, clipped, gradient):  # row 23
    value = cell(ratio)
    total, count = policy_loss(value, torch.tensor([[advantage]]), ONE, clip_range=0.2)
    total.backward()
    assert (total.item(), count.item()) == (pytest.approx(loss), clipped)
    assert value.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("value", "target", "loss", "clipped"),
    [
        (1.0, 2.0, 0.5 * 1.8**2, 1),  # moved towards the return by 1; with 0.2 allowed, the error is 1.8
        (-1.0, -2.0, 0.5 * 1.8**2, 1),
        (1.0, 0.0, 0.5 * 1.0**2, 0),  # moved away: the plain error is the larger
        (-1.0, 0.0, 0.5 * 1.0**2, 0),
        (0.1, 1.0, 0.5 * 0.9**2, 0),  # within the range both are the same
    ],
)
def test_value_loss_is_the_larger_of_clipped_and_unclipped(value, target, loss, clipped):  # row 23
    old = torch.zeros(1, 1)
    total, count = value_loss(cell(value), old, torch.tensor([[target]]), ONE, clip_range=0.2)
    assert (total.item(), count.item()) == (pytest.approx(loss), clipped)


def test_a_clipped_value_has_no_gradient():
    value = cell(1.0)
    value_loss(value, torch.zeros(1, 1), torch.tensor([[2.0]]), ONE, clip_range=0.2)[0].backward()
    assert value.grad.item() == 0.0


def ppo_losses(logprobs, values, old, advantages, returns, mask):
    """Policy and value loss of a batch as the trainer adds them up, summed over tokens."""
    ratio, _ = policy_ratio(logprobs, old, mask, 20.0)
    return policy_loss(ratio, advantages, mask, 0.2)[0] + value_loss(values, old, returns, mask, 0.2)[0]


@given(seeds, rows, widths, st.integers(0, 4))
def test_losses_and_gradients_ignore_nan_in_padding(ragged, poison, seed, rows, width, dirty):  # row 29
    mask, *columns = ragged(seed, rows, width, 5)
    results = []
    for column in (columns[dirty] * mask, poison(columns[dirty], mask)):
        inputs = [column if i == dirty else c * mask for i, c in enumerate(columns)]
        logprobs, values = (c.clone().requires_grad_() for c in inputs[:2])
        loss = ppo_losses(logprobs, values, *inputs[2:], mask)
        loss.backward()
        results.append((loss.detach(), logprobs.grad, values.grad))
    for clean, found in zip(*results, strict=True):
        assert torch.equal(clean, found)


@given(seeds, rows, widths)
def test_counters_ignore_padding(ragged, seed, rows, width):  # row 29
    mask, logprobs, old, advantages, returns = ragged(seed, rows, width, 4)
    garbage = [torch.where(mask.bool(), c, 1e3 * c) for c in (logprobs, old, advantages, returns)]
    for columns in ((logprobs, old, advantages, returns), garbage):
        ratio, cut = policy_ratio(columns[0], columns[1], mask, 1.0)
        real = mask.bool()
        assert cut == ((logprobs - old)[real].abs() > 1.0).sum()
        _, policy_clipped = policy_loss(ratio, columns[2], mask, 0.2)
        _, value_clipped = value_loss(*columns[:2], columns[3], mask, 0.2)
        assert policy_clipped <= real.sum()
        near = old + (logprobs - old).clamp(-0.2, 0.2)
        assert value_clipped == ((near - returns).abs() > (logprobs - returns).abs())[real].sum()


def test_micro_batch_sums_over_the_global_count_give_the_loss_of_the_whole_batch(ragged):  # row 30
    mask, *columns = ragged(5, 7, 9, 5)
    mask[0], mask[1:3] = 1, 0
    mask[1:3, 0] = 1  # lengths from 1 to 9
    whole = [c.clone().requires_grad_() for c in columns]
    loss = ppo_losses(*whole, mask) / mask.sum()
    loss.backward()
    for sizes in ([3, 4], [1, 1, 5], [6, 1]):
        parts = [c.clone().requires_grad_() for c in columns]
        sums, means = 0.0, []
        for rows in torch.arange(7).split(sizes):
            part = ppo_losses(*(c[rows] for c in parts), mask[rows])
            (part / mask.sum()).backward()
            sums += part.item()
            means.append(part.item() / mask[rows].sum().item())
        assert sums / mask.sum().item() == pytest.approx(loss.item())
        assert abs(sum(means) / len(means) - loss.item()) > 1e-3  # what a mean of micro-batch means would be
        for one, other in zip(whole[:2], parts[:2], strict=True):
            torch.testing.assert_close(one.grad, other.grad)
