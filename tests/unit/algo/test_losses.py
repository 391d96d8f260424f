import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.algo.losses import (
    count_clipped,
    count_losses,
    likelihood_loss,
    loss_weights,
    policy_loss,
    policy_ratio,
    value_loss,
    weighted_sum,
)  # fmt: skip

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


@pytest.mark.parametrize(
    ("ratio", "advantage", "plain", "higher", "dual"),
    [
        (1.25, 1.0, -1.2, -1.25, -1.2),
        (1.35, 1.0, -1.2, -1.28, -1.2),
        (0.7, 1.0, -0.7, -0.7, -0.7),
        (0.7, -1.0, 0.8, 0.8, 0.8),
        (1.5, -1.0, 1.5, 1.5, 1.5),
        (5.0, -1.0, 5.0, 5.0, 3.0),
    ],
)
def test_clip_higher_and_dual_clip(ratio, advantage, plain, higher, dual):
    value, weight = cell(ratio), torch.tensor([[advantage]])
    found = [policy_loss(value, weight, ONE, 0.2, *more)[0].item() for more in ((), (0.28,), (None, 3.0))]
    assert found == pytest.approx([plain, higher, dual], abs=1e-5)


def test_clipped_tokens_are_counted_by_side():
    ratio, advantages = torch.tensor([[0.7, 1.3, 1.3, 0.7, 4.0, 9.0]]), torch.tensor([[-1.0, 1.0, -1.0, 1.0, -1.0, -1.0]])
    found = count_clipped(ratio, advantages, torch.tensor([[1, 1, 1, 1, 1, 0]]), 0.2, 0.28, 3.0)
    assert list(found.values()) == [1, 1, 1]


# Losses [1, 3] and [2, 2, 5, 1] of responses of at most 8 tokens.
TOKENS, LOSSES = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]), torch.tensor([[1.0, 3.0, math.nan, 9.0], [2.0, 2.0, 5.0, 1.0]])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [("token_mean", 2.33333), ("sequence_mean", 2.25), ("sequence_sum", 7.0), ("constant", 0.875)],
)
def test_losses_are_averaged_over_the_update_however_it_is_split(aggregation, expected):
    def summed(losses, mask):
        return weighted_sum(losses, mask, loss_weights(mask, aggregation, 8)).item()

    count = count_losses(TOKENS, aggregation)
    assert summed(LOSSES, TOKENS) / count == pytest.approx(expected, abs=1e-5)
    parts = zip(LOSSES.split(1), TOKENS.split(1), strict=True)
    assert sum(summed(*part) for part in parts) / count == pytest.approx(expected, abs=1e-5)


def test_a_response_without_trained_actions_is_not_counted():
    mask = torch.tensor([[1, 1], [0, 0]])
    assert [count_losses(mask, how) for how in ("token_mean", "sequence_mean", "constant")] == [2, 1, 1]
    assert torch.isfinite(loss_weights(mask, "sequence_mean", 8)).all()


def test_ratios_of_sequences():
    changes, mask = torch.tensor([[0.1, -0.05, 7.0, 7.0], [0.3, 0.1, -0.2, 0.0]]), TOKENS
    mean, product = (policy_ratio(changes, torch.zeros(2, 4), mask, 20.0, level)[0] for level in ("sequence", "product"))
    torch.testing.assert_close(mean[:, 0], torch.tensor([1.025315, 1.051271]), rtol=0, atol=1e-5)
    torch.testing.assert_close(product[:, 0], torch.tensor([1.051271, 1.221403]), rtol=0, atol=1e-5)
    assert (mean[0, 2:] == 1).all() and (mean[1] == mean[1, 0]).all()


@pytest.mark.parametrize(("level", "power"), [("sequence", 1.0), ("product", None)])
def test_the_gradient_of_a_sequence_ratio_is_that_of_its_log_likelihood(level, power):
    """At ratio 1, RLOO's is -A times the gradient of the summed log-probabilities over B, GSPO's that of their mean."""
    logprobs = torch.zeros(2, 4, requires_grad=True)
    advantages, weights = torch.tensor([[2.0], [-3.0]]), loss_weights(TOKENS, "sequence_mean", 8)
    ratio, _ = policy_ratio(logprobs, torch.zeros(2, 4), TOKENS, 20.0, level)
    loss, _ = policy_loss(ratio, advantages.expand(2, 4), TOKENS, 0.2, weights=weights)
    (loss / count_losses(TOKENS, "sequence_mean")).backward()
    lengths = TOKENS.sum(1, keepdim=True) if power else 1
    torch.testing.assert_close(logprobs.grad, -advantages / lengths * TOKENS / 2)


def test_gspos_token_form_has_the_same_value_and_gradient():
    generator = torch.Generator().manual_seed(3)
    logprobs, old = torch.randn(2, 4, generator=generator).mul(0.1).requires_grad_(), torch.zeros(2, 4)
    advantages, weights = torch.tensor([[1.0], [-0.5]]).expand(2, 4), loss_weights(TOKENS, "sequence_mean", 8)
    ratio, _ = policy_ratio(logprobs, old, TOKENS, 20.0, "sequence")
    tokens = ratio.detach() * (logprobs - logprobs.detach()).exp()
    found = [policy_loss(r, advantages, TOKENS, 0.2, 0.3, weights=weights)[0] for r in (ratio, tokens)]
    gradients = [torch.autograd.grad(loss, logprobs, retain_graph=True)[0] for loss in found]
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)


def test_the_likelihood_loss_ignores_padding():
    logprobs = torch.tensor([[-1.0, -2.0, math.nan, 0.0], [-3.0, -1.0, -1.0, -1.0]], requires_grad=True)
    loss = likelihood_loss(logprobs, torch.tensor([[1.0], [0.0]]).expand(2, 4), TOKENS)
    loss.backward()
    assert loss.item() == 3.0 and logprobs.grad.tolist() == [[-1, -1, 0, 0], [0, 0, 0, 0]]
